"""Graphs that are kept ready for the runtime: they compute the same bits, and are found by content, or made again."""

import os
import sys

import numpy as np
import pytest
from onnx import helper

from genai_ray import InferenceSession, catalog
from genai_ray.catalog import ModelSpec
from genai_ray.files import cache_folder, local
from genai_ray.graph import header
from genai_ray.inspection import records
from genai_ray.session import opening, prepared
from genai_ray.session.prepared import find_prepared
from tests.session.test_any_model import save, value
from tests.session.test_session import PACKAGED

VECTOR = np.arange(1200, dtype=np.float32)[None]
PARSERS = {"FromString", "ParseFromString", "MergeFromString"}
FEW = ("websr-x2-l", "ffdnet")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of kept graphs, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder() / "prepared"


def save_product(path, seed, *, is_described=True):
    """One product with a matrix of 5.8 MB, which lies apart from the graph; without a description, it is tried out."""
    if is_described:
        path.with_suffix(".yaml").write_text(f"model_id: product\nfile: {path}\n")
    weights = np.random.default_rng(seed).standard_normal((1200, 1200)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(path, [node], [value("x", [1, 1200])], [value("y", [1, 1200])], {"w": weights})


def product_of(path):
    with InferenceSession(path, threads=1) as one:
        return one.run({"x": VECTOR})["y"]


def kept(folder, suffix=""):
    return sorted(folder.glob(f"*{suffix}"), key=lambda file: file.stat().st_atime_ns)


def sizes_of(info):
    return [axis or (64 if index else 1) for index, axis in enumerate(info.shape)]


def results_of(model):
    """What a session computes of frames of each dtype and of raw tensors."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), np.uint8)
    kinds = (pictures, pictures.astype(np.uint16) * 257, pictures.astype(np.float32) / 255)
    with InferenceSession(model, threads=1) as one:
        found = [one.infer(frames) for frames in kinds]
        with one._use_raw({}) as runtime:
            feeds = {info.name: np.ones(sizes_of(info), info.dtype) for info in runtime.inputs}
            return [*found, *runtime.run(feeds).values()]


@pytest.mark.parametrize(
    "model", [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in PACKAGED]
)
def test_weights_apart_give_the_same_bits(model, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(opening, "find_prepared", lambda *_: None)
        expected = results_of(model)
    assert not folder.exists()
    monkeypatch.setattr(header, "WHOLE_FILE_BYTES", 0)
    for _ in range(2):
        assert all(map(np.array_equal, results_of(model), expected))
        assert len(kept(folder, ".json")) == 4  # the model, and what is around it for each dtype
        assert len(kept(folder, ".onnx")) == 7
        assert len(kept(folder, ".weights")) == 1


def test_a_second_load_parses_nothing(tmp_path, folder, monkeypatch):
    path = save_product(tmp_path / "product.onnx", 0, is_described=False)
    expected = product_of(path)
    assert [len(kept(folder, suffix)) for suffix in (".json", ".onnx", ".weights")] == [1, 1, 1]
    assert kept(folder, ".onnx")[0].stat().st_size < 1000
    with InferenceSession("websr-x2-s") as one:
        frames = one.infer(np.ones((20, 20, 3), np.uint8))
    parsed = []

    def look(_frame, event, called):
        if event == "c_call" and called.__name__ in PARSERS:
            parsed.append(called)

    monkeypatch.setattr(records, "_known", {})
    sys.setprofile(look)
    try:
        found = product_of(path)
        with InferenceSession("websr-x2-s") as one:
            again = one.infer(np.ones((20, 20, 3), np.uint8))
        assert parsed == []
        header.read_header(path)
        assert parsed  # what is looked for is seen
    finally:
        sys.setprofile(None)
    assert np.array_equal(found, expected)
    assert np.array_equal(again, frames)


@pytest.mark.parametrize("suffix", [".json", ".onnx", ".weights"])
def test_a_damaged_or_foreign_file_is_made_again(suffix, tmp_path, folder):
    path = save_product(tmp_path / "product.onnx", 0)
    expected = product_of(path)
    (file,) = kept(folder, suffix)
    whole = file.read_bytes()
    file.chmod(0o600)
    for damaged in (whole[:-5], bytes(len(whole)), whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b""):
        file.write_bytes(damaged)
        assert np.array_equal(product_of(path), expected)
        assert file.read_bytes() == whole
        file.chmod(0o600)
    for spoil in (lambda: file.chmod(0o622), file.unlink):
        spoil()
        assert np.array_equal(product_of(path), expected)
        assert file.read_bytes() == whole
        assert not file.stat().st_mode & 0o022
    target = file.rename(tmp_path / "elsewhere")
    file.symlink_to(target)
    assert np.array_equal(product_of(path), expected)
    assert not file.is_symlink()


def test_nothing_of_other_users_is_opened(tmp_path, folder, monkeypatch):
    path = save_product(tmp_path / "product.onnx", 0)
    expected = product_of(path)
    spec = ModelSpec(model_id="product", file=str(path))
    assert find_prepared(spec, path, "raw") is not None
    folder.chmod(0o777)
    assert find_prepared(spec, path, "raw") is None
    folder.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(local.os, "geteuid", lambda: os.getuid() + 1)
        patch.setattr(prepared, "_read", None)
        assert find_prepared(spec, path, "raw") is None
        assert np.array_equal(product_of(path), expected)
    assert find_prepared(spec, path, "raw") is not None


def test_a_model_of_the_same_size_and_time_is_another_model(tmp_path):
    path, other = save_product(tmp_path / "a.onnx", 0), save_product(tmp_path / "b.onnx", 1)
    first, second = product_of(path), product_of(other)
    assert not np.array_equal(first, second)
    facts = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert np.array_equal(product_of(path), second)


def test_a_model_that_changes_while_it_is_read_is_not_kept(tmp_path, folder, monkeypatch):
    path, other = save_product(tmp_path / "a.onnx", 0), save_product(tmp_path / "b.onnx", 1)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "find_prepared", lambda *_: None)
        first, second = product_of(path), product_of(other)
    copy_weights = prepared.copy_weights

    def replace_it(*args):
        path.write_bytes(other.read_bytes())
        return copy_weights(*args)

    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "copy_weights", replace_it)
        assert np.array_equal(product_of(path), second)
    assert kept(folder, ".json") == []
    path.write_bytes(before)
    assert np.array_equal(product_of(path), first)


def test_a_graph_that_is_removed_before_it_is_opened_is_no_loss(tmp_path, folder, monkeypatch):
    path = save_product(tmp_path / "product.onnx", 0)
    expected = product_of(path)

    def lose(*args):
        found = find_prepared(*args)
        for file in kept(folder, ".weights"):
            file.unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(opening, "find_prepared", lose)
        assert np.array_equal(product_of(path), expected)
    assert np.array_equal(product_of(path), expected)
    assert len(kept(folder, ".weights")) == 1


def test_what_was_used_least_recently_goes(tmp_path, folder, monkeypatch):
    paths = [save_product(tmp_path / f"{name}.onnx", number) for number, name in enumerate("abcd")]
    monkeypatch.setattr(prepared, "MAX_KEPT_BYTES", 18_000_000)
    for path in (*paths[:3], paths[0]):
        product_of(path)
    for name, is_old in (("lost", True), ("new", False)):
        (folder / f"{name}.partial").touch()
        os.utime(folder / f"{name}.partial", (0, 0) if is_old else None)
    product_of(paths[3])
    assert len(kept(folder, ".weights")) == 3
    assert sum(file.stat().st_size for file in kept(folder)) <= 18_000_000
    keys = {path: prepared._key_of(catalog.hash_file(path), ModelSpec(model_id="x", file="x"), "raw") for path in paths}
    assert {file.stem for file in kept(folder, ".json")} == {keys[path] for path in (paths[0], *paths[2:])}
    assert [file.name for file in kept(folder, ".partial")] == ["new.partial"]
    monkeypatch.setattr(prepared, "MAX_KEPT_BYTES", 8_000_000)
    before = kept(folder)
    product_of(save_product(tmp_path / "e.onnx", 5))  # more than half of that
    assert kept(folder) == before
