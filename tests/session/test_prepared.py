"""Graphs that are kept ready for the runtime: they compute the same bits, and are found by content, or made again."""

import errno
import json
import os
import shutil
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from genai_ray import InferenceSession, ModelCatalog, catalog, errors
from genai_ray.catalog import ModelSpec, dump_spec
from genai_ray.files import cache_folder, local
from genai_ray.graph import header, plan_weights
from genai_ray.inspection import records
from genai_ray.session import opening, prepared
from genai_ray.session.prepared import find_prepared
from tests.session.test_any_model import run_plain, save, value
from tests.session.test_session import PACKAGED

VECTOR = np.arange(1200, dtype=np.float32)[None]
PARSERS = {"FromString", "ParseFromString", "MergeFromString"}
FEW = ("websr-x2-l", "ffdnet")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of kept graphs, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return prepared._folder()


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
    return sorted(folder.glob(f"*{suffix}"), key=lambda file: file.stat().st_mtime_ns)


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
    "model",
    [
        one
        if one in FEW
        else pytest.param(one, marks=[pytest.mark.slow, *[pytest.mark.longest] * one.startswith("realesrgan")])
        for one in PACKAGED
    ],
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
    monkeypatch.setattr(records, "_known", {})  # of other tests, whose folder was another one
    path = save_product(tmp_path / "product.onnx", 0, is_described=False)
    expected = product_of(path)
    assert [len(kept(folder, suffix)) for suffix in (".json", ".onnx", ".weights")] == [1, 1, 1]
    assert kept(folder, ".onnx")[0].stat().st_size < 1000
    with InferenceSession("websr-x2-s") as one:
        frames = one.infer(np.ones((20, 20, 3), np.uint8))
    parsed = []

    def look(_frame, event, called):
        if event == "c_call" and called.__name__ in PARSERS:
            owner = called.__self__ if isinstance(called.__self__, type) else type(called.__self__)
            if owner.__module__.startswith("onnx"):  # Ray, if other tests have started it, has messages of its own
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


@pytest.mark.slow
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
        prepared._remove_oldest(prepared.MAX_KEPT_BYTES)  # reads every record, which is no use of it
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
    assert [file for file in kept(folder) if file.suffix != ".failed"] == before


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A model of the user's folder, with its sha256."""
    monkeypatch.setenv("GENAI_RAY_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "own.onnx"
    shutil.copyfile(ModelCatalog.default().path("websr-x2-s"), path)
    spec = ModelCatalog.default().get("websr-x2-s")
    changes = {"model_id": "own", "aliases": (), "presets": (), "file": "own.onnx"}
    path.with_suffix(".yaml").write_text(dump_spec(spec.model_copy(update=changes)))
    ModelCatalog.forget()
    assert ModelCatalog.default().get("own").sha256 == catalog.hash_file(path)
    yield path
    ModelCatalog.forget()


def test_a_model_that_is_overwritten_later_spoils_nothing(own_model, folder):
    frames = np.random.default_rng(0).integers(0, 65536, (30, 40, 3), np.uint16)
    with InferenceSession("websr-x2-s") as session:
        expected = session.infer(frames)
    right = own_model.read_bytes()
    with InferenceSession("own") as session:
        session.infer(frames.astype(np.uint8))
        model = onnx.load(own_model)
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 4:
                array = onnx.numpy_helper.to_array(tensor) / np.float32(2)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(model, own_model)
        before = kept(folder)
        assert np.array_equal(session.infer(frames), expected)  # its model is loaded; what is around it is not kept
        assert find_prepared(session.spec, own_model, "core") is None
        assert kept(folder) == before
    own_model.write_bytes(right)
    for _ in range(2):
        with InferenceSession("own") as session:
            assert np.array_equal(session.infer(frames), expected)
    assert len(kept(folder)) > len(before)


def save_overlapping(path, entries, shape=(400, 400)):
    """A sum of tensors that lie in one file; each is given by what its model says of its place."""
    (path.parent / "weights").write_bytes(np.random.default_rng(0).standard_normal(200_000, np.float32).tobytes())
    names = [f"w{number}" for number in range(len(entries))]
    save(path, [helper.make_node("Sum", ["x", *names], ["y"])], [value("x", shape)], [value("y", shape)])
    model = onnx.load(path)
    for name, places in zip(names, entries, strict=True):
        tensor = model.graph.initializer.add(
            name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
        )
        for key, text in places:
            tensor.external_data.add(key=key, value=str(text))
    path.write_bytes(model.SerializeToString())
    path.with_suffix(".yaml").write_text(f"model_id: sum\nfile: {path}\n")
    return path


def test_tensors_that_overlap_in_their_file_count_each(tmp_path, folder, monkeypatch):
    places = [[("location", "weights"), ("offset", 4 * number), ("length", 640_000)] for number in range(60)]
    path = save_overlapping(tmp_path / "sum.onnx", [*places, *places])
    feeds = {"x": np.ones((400, 400), np.float32)}
    expected = run_plain(path, feeds)["y"]
    for limit, num_weights in (("40 MB", 0), ("100 MB", 1)):
        monkeypatch.setenv("GENAI_RAY_PREPARED_BYTES", limit)
        for mark in kept(folder, ".failed"):
            mark.unlink()
        with InferenceSession(path, threads=1) as session:
            assert np.array_equal(session.run(feeds)["y"], expected)
        assert len(kept(folder, ".weights")) == num_weights
    size = kept(folder, ".weights")[0].stat().st_size
    assert 60 * 640_000 < size <= 60 * (640_000 + 4096)


def test_a_tensor_without_a_length_has_that_of_its_shape(tmp_path, folder):
    path = save_overlapping(tmp_path / "sum.onnx", [[("location", "weights")]])
    feeds = {"x": np.ones((400, 400), np.float32)}
    with InferenceSession(path, threads=1) as session:
        assert np.array_equal(session.run(feeds)["y"], run_plain(path, feeds)["y"])
    assert kept(folder, ".weights")[0].stat().st_size == 640_000


@pytest.mark.parametrize(
    "places",
    [
        [("length", 640_000)],
        [("location", "weights\0"), ("length", 640_000)],
        [("location", "weights"), ("length", -1)],
        [("location", "weights"), ("length", 639_996)],
        [("location", "weights"), ("length", 10**30)],
        [("location", "weights"), ("offset", 10**30), ("length", 640_000)],
        [("location", "weights"), ("offset", "1_0"), ("length", 640_000)],
        [("location", "weights"), ("offset", 0), ("offset", 4), ("length", 640_000)],
        [("location", "weights"), ("offset", 400_000), ("length", 640_000)],
        [("location", "elsewhere"), ("length", 640_000)],
        [("location", "/etc/passwd"), ("length", 640_000)],
        [("location", "."), ("length", 640_000)],
    ],
)
def test_tensors_with_a_wrong_place_are_not_kept(places, tmp_path, folder):
    path = save_overlapping(tmp_path / "sum.onnx", [places])
    if places[0][1] == "weights" and ("offset", 400_000) not in places:
        with pytest.raises(errors.ModelLoadError, match="w0"):
            plan_weights([onnx.load(path, load_external_data=False)])
    for _ in range(2):
        assert find_prepared(ModelSpec(model_id="sum", file=str(path)), path, "raw") is None
    assert {file.suffix for file in kept(folder)} <= {".failed"}


def test_a_relative_path_is_as_good(tmp_path, folder, monkeypatch):
    path = save_overlapping(tmp_path / "sum.onnx", [[("location", "weights")]])
    monkeypatch.chdir(tmp_path)
    relative = path.relative_to(tmp_path)
    assert find_prepared(ModelSpec(model_id="sum", file=str(relative)), relative, "raw") is not None
    assert len(kept(folder, ".weights")) == 1


def test_a_model_whose_bytes_cannot_be_predicted_is_kept(folder, monkeypatch):
    def refuse(*_, **__):
        raise onnx.shape_inference.InferenceError("an operator of no set")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", refuse)
    with InferenceSession("websr-x2-s") as session:
        assert session.infer(np.ones((20, 20, 3), np.uint8)).shape == (40, 40, 3)
    assert kept(folder, ".json")


def test_a_failure_is_remembered_for_a_while(tmp_path, folder, monkeypatch):
    path = save_product(tmp_path / "product.onnx", 0)
    tried = []

    def fail(*_):
        tried.append(1)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "copy_weights", fail)
        expected = product_of(path)
        assert np.array_equal(product_of(path), expected)
        assert len(tried) == 1
        (mark,) = kept(folder)
        os.utime(mark, (0, 0))
        product_of(path)
        assert len(tried) == 2
    product_of(path)
    assert len(kept(folder)) == 1
    os.utime(mark, (0, 0))
    assert np.array_equal(product_of(path), expected)
    assert len(kept(folder, ".weights")) == 1


def test_a_graph_that_the_runtime_refuses_is_made_once(tmp_path, folder, monkeypatch):
    path = save_product(tmp_path / "product.onnx", 0)
    expected = product_of(path)
    monkeypatch.setattr(prepared, "copy_weights", None)
    found = find_prepared(ModelSpec(model_id="product", file=str(path)), path, "raw")
    prepared.forget_prepared(found)
    for _ in range(2):
        assert np.array_equal(product_of(path), expected)
    assert [len(kept(folder, suffix)) for suffix in (".json", ".failed")] == [0, 1]


def test_weights_are_copied_once_for_all_dtypes(folder, monkeypatch):
    monkeypatch.setattr(header, "WHOLE_FILE_BYTES", 0)
    spec, path = ModelCatalog.default().get("websr-x2-s"), ModelCatalog.default().path("websr-x2-s")
    first = find_prepared(spec, path, "uint8")
    monkeypatch.setattr(prepared, "copy_weights", None)
    second = find_prepared(spec, path, "uint16")
    assert first.weights == second.weights != ""
    assert len(kept(folder, ".weights")) == 1


def test_nothing_is_kept_for_a_while_or_when_switched_off(tmp_path, monkeypatch):
    path = save_product(tmp_path / "product.onnx", 0)
    expected = product_of(path)
    spec = ModelSpec(model_id="product", file=str(path))
    assert find_prepared(spec, path, "raw") is not None
    with monkeypatch.context() as patch:
        patch.setenv("GENAI_RAY_PREPARED_BYTES", "0")
        assert find_prepared(spec, path, "raw") is None
        assert np.array_equal(product_of(path), expected)
        patch.setenv("GENAI_RAY_PREPARED_BYTES", "much")
        with pytest.raises(errors.ConfigError, match="GENAI_RAY_PREPARED_BYTES=much"):
            product_of(path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr(local, "temporary_base", lambda: str(tmp_path))
    assert cache_folder().parent == tmp_path
    assert find_prepared(spec, path, "raw") is None
    assert not (cache_folder() / "prepared").exists()


def test_machines_and_versions_do_not_meet(tmp_path, folder, monkeypatch):
    path = save_product(tmp_path / "product.onnx", 0)
    expected = product_of(path)
    before = kept(folder)
    monkeypatch.setattr(prepared, "MAX_KEPT_BYTES", 12_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(prepared.socket, "gethostname", lambda: "../../other")
        product_of(save_product(tmp_path / "other.onnx", 1))
        assert prepared._folder().parent.name == "______other"
        assert prepared._folder().parent.parent == folder.parent.parent
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_version", lambda: "later")
        for name, is_old in (("unused", True), ("recent", False)):
            (folder.parent / name).mkdir(mode=0o700)
            (folder.parent / name / "a.json").touch()
            for place in (folder.parent / name / "a.json", folder.parent / name):
                os.utime(place, (0, 0) if is_old else None)
        product_of(save_product(tmp_path / "another.onnx", 2))
        assert sorted(each.name for each in folder.parent.iterdir()) == sorted((folder.name, "later", "recent"))
    assert kept(folder) == before
    (record,) = kept(folder, ".json")
    facts = json.loads(record.read_bytes())["facts"] | {"more": 1}
    record.write_text(json.dumps({"facts": facts, "check": prepared._check_of(facts)}))
    assert np.array_equal(product_of(path), expected)
    assert "more" not in json.loads(record.read_bytes())["facts"]


def test_no_weights_of_another_precision_are_kept(folder, monkeypatch):
    monkeypatch.setattr(header, "WHOLE_FILE_BYTES", 0)
    with InferenceSession("websr-x2-s", precision="fp16") as session:
        assert session.infer(np.ones((20, 20, 3), np.uint8)).shape == (40, 40, 3)
    assert [len(kept(folder, suffix)) for suffix in (".json", ".onnx", ".weights")] == [1, 2, 0]  # before and after it
