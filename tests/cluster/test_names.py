"""Names of models, caches and tensors that are no text: they go through Ray and its messages. Names beyond ASCII in its
metrics: ``test_status.py``."""

import logging
import os
import pickle

import numpy as np
import pytest

from genai_ray import ModelCache, errors
from genai_ray.cluster.cache.metrics import CacheMetrics
from tests.caches import ending
from tests.serve.models import add_number

ONE = np.ones(1, np.float32)


@pytest.fixture(scope="module")
def cache(ray_session):
    with ending(ModelCache(1_000_000_000, name="café")) as cache:
        yield cache


@pytest.mark.cluster
def test_a_name_that_is_no_text_is_refused_and_the_cache_stays(cache, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.onnx")
    add_number(tmp_path / "one.onnx", 1)
    os.rename(tmp_path / "one.onnx", path)
    pid = cache.status().pid
    for call in (
        cache.load_model,
        cache.get_session,
        lambda path: cache.lease([path]),
        lambda path: cache.prefetch([path]),
    ):
        with pytest.raises(errors.ModelLoadError, match=r"caf\\udce9\.onnx.*UTF-8.*[Rr]ename"):
            call(path)
    for call in (cache.evict, cache.pin, cache.unpin):
        with pytest.raises(errors.ModelNotFoundError, match=r"caf\\udce9\.onnx is not loaded"):
            call(path)
    assert cache.status().pid == pid
    with pytest.raises(errors.ConfigError, match=r"caf\\udce9.*UTF-8"):
        ModelCache(name="caf\udce9")


@pytest.mark.cluster
def test_an_input_whose_name_is_no_text_leaves_its_session_alive(cache, tmp_path, frames):
    add_number(tmp_path / "one.onnx", 1)
    raw, pictures = cache.get_session(tmp_path / "one.onnx"), cache.get_session("websr-x2-s")
    pids = [session.status()["pid"] for session in (raw, pictures)]
    with pytest.raises(errors.InvalidInputError, match=r"\\ud800"):
        raw.run({"\ud800": ONE})
    with pytest.raises(errors.InvalidInputError, match=r"\\ud800"):
        pictures.infer(frames, {"\ud800": 1.0})
    assert [session.status()["pid"] for session in (raw, pictures)] == pids


def test_a_metric_that_fails_is_logged_and_fails_nothing(ray_session, caplog):
    figures = CacheMetrics("a test")
    with caplog.at_level(logging.WARNING, logger="genai_ray"):
        figures.loaded("websr-x2-s", "soon")
        figures.looked([], [], {"websr-x2-s": "many"})
    assert len([record for record in caplog.records if "was not told" in record.getMessage()]) == 2


def test_a_message_can_always_be_written_and_sent():
    error = pickle.loads(pickle.dumps(errors.InvalidInputError("\ud800 é", "\udce9", "Mend \udfff.")))
    assert str(error).encode().decode() == "\\ud800 é; allowed: \\udce9. Mend \\udfff."
