"""Files that somebody else names: what is checked is what is opened. Real files, links, pipes and devices."""

import os
import threading

import pytest

from genai_ray.errors import InvalidInputError, VideoError
from genai_ray.files import fetch_untrusted, open_below
from genai_ray.serve.web.videos import check_uri

SECRET = b"nobody's business"


@pytest.fixture
def place(tmp_path):
    """A folder ``in`` that is allowed, with a clip and a folder, beside a secret."""
    inside = tmp_path / "in"
    (inside / "more").mkdir(parents=True)
    (inside / "clip.mkv").write_bytes(b"clip")
    (inside / "more" / "clip.mkv").write_bytes(b"clip")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "clip.mkv").write_bytes(SECRET)
    return inside


def fetch(place, name, scheme="file", allowed=None):
    target = place.parent / "fetched"
    uri = f"{scheme}://{place}/{name}"
    fetch_untrusted(uri, target, 100, allowed or (f"{scheme}://{place}",))
    return target.read_bytes()


def refused(place, name, words, **options):
    with pytest.raises(VideoError, match=words):
        fetch(place, name, **options)
    assert not (place.parent / "fetched").exists()


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_files_and_links_below_the_folder_are_read(place, scheme):
    (place / "link.mkv").symlink_to(place / "more" / "clip.mkv")
    (place / "other").symlink_to("more")
    for name in ("clip.mkv", "more/clip.mkv", "link.mkv", "other/clip.mkv", "more/%63lip.mkv"):
        assert fetch(place, name, scheme) == b"clip"
        check_uri(f"{scheme}://{place}/{name}", (f"{scheme}://{place}",))


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_what_became_a_link_after_it_was_checked_is_not_read(place, scheme):
    uri, allowed = f"{scheme}://{place}/more/clip.mkv", (f"{scheme}://{place}",)
    check_uri(uri, allowed)
    (place / "more" / "clip.mkv").unlink()
    (place / "more" / "clip.mkv").symlink_to(place.parent / "secrets" / "clip.mkv")
    refused(place, "more/clip.mkv", "outside the allowed folders", scheme=scheme)
    (place / "more" / "clip.mkv").unlink()
    (place / "more").rmdir()
    (place / "more").symlink_to(place.parent / "secrets")
    refused(place, "more/clip.mkv", "outside the allowed folders", scheme=scheme)
    with pytest.raises(InvalidInputError, match="outside the allowed folders"):
        check_uri(uri, allowed)
    with pytest.raises(InvalidInputError, match="outside the allowed folders"):
        check_uri(f"{scheme}://{place}/more/missing.mkv", allowed)


def test_folders_of_other_schemes_allow_no_file_of_this_machine(place):
    refused(place, "clip.mkv", "outside the allowed folders", allowed=(f"s3:/{place}", "https:///"))
    refused(place, "", "outside the allowed folders")
    refused(place, "more", "a pipe, a device or a folder; allowed: a regular file")
    refused(place, "nothing.mkv", "no such file")


@pytest.mark.parametrize("name", ["pipe", "more/pipe", "link"])
def test_pipes_and_devices_are_not_waited_for(place, name):
    """A pipe that nobody writes to held a job's slot for ever."""
    os.mkfifo(place / name if name != "link" else place / "more" / "other")
    if name == "link":
        (place / name).symlink_to("more/other")
    refused(place, name, "a pipe, a device or a folder; allowed: a regular file")
    with pytest.raises(InvalidInputError, match="a pipe, a device or a folder; allowed: a regular file"):
        check_uri(f"file://{place}/{name}", (f"file://{place}",))
    for device in ("zero", "null"):
        with pytest.raises(VideoError, match="a device"):
            open_below(f"file:///dev/{device}", ("file:///dev",))


def test_links_that_are_exchanged_all_the_time_never_lead_out(place):
    over, outcomes = threading.Event(), {"clip": 0, "refused": 0}
    real, away, bad = place / "more", place / "away", place.parent / "bad"
    bad.symlink_to(place.parent / "secrets")

    def swap():
        while not over.is_set():
            os.rename(real, away)
            os.rename(bad, real)
            os.rename(real, bad)
            os.rename(away, real)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(20_000):
            try:
                with open_below(f"file://{place}/more/clip.mkv", (f"file://{place}",)) as file:
                    assert file.read() == b"clip"
                outcomes["clip"] += 1
            except VideoError:
                outcomes["refused"] += 1
            if min(outcomes.values()) > 200:
                break
    finally:
        over.set()
        thread.join()
    assert all(outcomes.values()), outcomes
