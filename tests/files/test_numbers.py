"""Numbered files as one input."""

import pytest

from genai_ray.errors import VideoError
from genai_ray.files import find_source_facts, has_number, is_numbered, list_numbered


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("%05d.png", True),
        ("a %d b.png", True),
        ("%d-%d.png", False),
        ("100%.png", False),
        ("%x.png", False),
        ("", False),
    ],
)
def test_a_number_is_one_field(name, answer):
    assert has_number(f"/somewhere/{name}") is answer
    assert not is_numbered(f"s3://bucket/{name}")


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("2.png", "10.png", "9.png", "x8.png", "8.jpg", "11.png.part"):
        (tmp_path / name).write_bytes(b"x")
    for number in (3, 4, 5, 6, 7, 8):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    assert list_numbered(f"{tmp_path}/%d.png") == {number: f"{tmp_path}/{number}.png" for number in range(2, 11)}
    assert list_numbered(f"{tmp_path}/%05d.png") == {}
    assert find_source_facts(f"{tmp_path}/%05d.png") is None


def test_zeros_in_front_count(tmp_path):
    for name in ("001.png", "1.png", "0002.png", "999.png", "1000.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(VideoError, match="missing between 1 and 1000: 2 to 998"):
        list_numbered(f"{tmp_path}/%03d.png")
    (tmp_path / "1000.png").unlink()
    assert list(list_numbered(f"{tmp_path}/%04d.png")) == [2]


def test_gaps_are_named(tmp_path):
    for number in (1, 3, 5, 7, 9, 20):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    with pytest.raises(VideoError, match="missing between 1 and 20: 2, 4, 6 and 2 more gaps"):
        list_numbered(f"{tmp_path}/%d.png")


def test_facts_change_with_any_file(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"x" * (number + 1))
    before = find_source_facts(f"{tmp_path}/%d.png")
    assert before.size == 6
    (tmp_path / "1.png").write_bytes(b"yyy")
    after = find_source_facts(f"{tmp_path}/%d.png")
    assert after.size == 7
    assert after.stamp != before.stamp
    assert find_source_facts(f"{tmp_path}/1.png").size == 3
