"""One worker, four, and four of which one is killed: the same bytes, whatever the encoder."""

import logging
from contextlib import contextmanager

import pytest
import ray

from genai_ray import EnhanceOptions, enhance_videos, verify_video
from genai_ray.cluster import connect, disconnect
from genai_ray.video import Encoding
from tests.processes import killing
from tests.video.clips import write

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ENCODINGS = {
    ".mp4": Encoding(codec="libx264", preset="ultrafast"),
    ".mov": Encoding(codec="libx265", preset="ultrafast"),
    ".webm": Encoding(codec="libvpx-vp9", preset="8"),
    ".mkv": Encoding(codec="ffv1"),
    ".av1.mp4": Encoding(codec="libsvtav1", preset="12"),
    ".prores.mov": Encoding(codec="prores_ks"),
}


TRIES = 5
"""Jobs of seconds may be over before the one who looks for the moment to kill has seen it."""


@contextmanager
def ray_of(num_cpus):
    """Another Ray in the place of the tests' own: so many tasks at once."""
    was_connected = ray.is_initialized()
    disconnect()
    ray.shutdown()
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
    )
    try:
        yield
    finally:
        ray.shutdown()
        if was_connected:
            connect()


def results(source, folder, kills):
    """Enhance with every encoder; with ``kills`` a worker is killed each time, once a segment is there and another one
    is being written."""
    found = {}
    for suffix, encoding in ENCODINGS.items():
        output = folder / f"b{suffix}"
        work = output.with_name(output.name + ".genai-ray")
        for _ in range(TRIES):
            with killing(
                "ray::_run_", kills, lambda work=work: any(work.glob("*.nut")) and any(work.glob("*.partial"))
            ) as killed:
                report = enhance_videos(
                    source,
                    output,
                    models="websr-x2-s",
                    options=EnhanceOptions(encoding=encoding, segment_frames=6, check="strict"),
                )
            assert (report.frames, report.segments) == (60, 10)
            assert output.read_bytes() == found.setdefault(suffix, output.read_bytes())
            assert verify_video(output).failures == ()  # so the records are the same, too: the files name them
            output.unlink()
            output.with_name(output.name + ".record.json").unlink()
            if len(killed) == kills:
                break
        assert len(killed) == kills, suffix
    assert list(folder.iterdir()) == []
    return found


def test_workers_and_deaths_change_no_byte(tmp_path):
    source = write(tmp_path / "a.mkv", size=(320, 180), pts=list(range(60)), options={"g": "12", "bf": "2"})
    folder = tmp_path / "results"
    folder.mkdir()
    with ray_of(1):
        alone = results(source, folder, 0)
    with ray_of(4):
        assert results(source, folder, 0) == alone
        assert results(source, folder, 1) == alone
