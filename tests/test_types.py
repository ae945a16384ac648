"""Values that every module shares."""

import pytest
from pydantic import ValidationError

from genai_ray import ModelCache, errors
from genai_ray.catalog import JobProfile, ServeProfile
from genai_ray.enhance import EnhanceOptions, enhance_videos
from genai_ray.types import parse_bytes


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        (1, 1),
        ("4096", 4096),
        ("2GB", 2 * 1000**3),
        ("512MiB", 512 * 1024**2),
        (" 1.5 gib ", 3 * 1024**3 // 2),
        ("1kB", 1000),
        ("1 TiB", 1024**4),
        ("7b", 7),
    ],
)
def test_bytes_are_read_with_units(size, num_bytes):
    assert parse_bytes(size) == num_bytes


@pytest.mark.parametrize("size", [0, -1, "0MB", "", "GB", "2 apples", "2G", "-2GB", "1e9", True, "nan", "2GB of RAM"])
def test_what_is_no_number_of_bytes_is_refused(size):
    with pytest.raises(errors.ConfigError, match=r"^--max-memory="):
        parse_bytes(size, "--max-memory")


def test_every_budget_may_have_a_unit(tmp_path, samples):
    assert JobProfile(name="a", max_memory_bytes="2GiB").max_memory_bytes == 2 * 1024**3
    assert ServeProfile(name="a").override(max_memory_bytes="2GB").max_memory_bytes == 2 * 1000**3
    with pytest.raises(ValidationError, match="2GB or 512MiB"):
        JobProfile(name="a", max_memory_bytes="much")
    with pytest.raises(errors.ConfigError, match="2GB or 512MiB"):
        ModelCache("much")
    with pytest.raises(errors.ConfigError, match="2GB or 512MiB"):
        enhance_videos(
            samples / "bigbuckbunny-360p.mp4",
            tmp_path / "b.mp4",
            models="websr-x2-s",
            options=EnhanceOptions(max_memory_bytes="much"),
        )
