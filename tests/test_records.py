"""Describing a model of a stranger: it runs in a process of its own, with limits, and is remembered by the file's
content."""

import asyncio
import contextlib
import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray.errors import ModelLoadError, ResourceExhaustedError
from genai_ray.inspection import find_model, records
from genai_ray.serve.engine.model_metadata import ModelMetadataCache, read_metadata
from tests.serve.models import add_number, value, write

LARGE = 200 * 1024**2
REPLICA_MAY_GROW = 50 * 1024**2


@pytest.fixture(autouse=True)
def _own_records(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "_known", {})


def write_large(path, num_bytes, op="Add", domain=""):
    """A model whose one tensor of ``num_bytes`` lies in the file itself, and is a hole there."""
    inputs, outputs = [value("x", "FP32", (num_bytes // 4,))], [value("y", "FP32", (num_bytes // 4,))]
    graph = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"], domain=domain)], "large", inputs, outputs)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    )
    model.ir_version = 9
    head = graph.SerializeToString()
    model.ClearField("graph")
    tensor = onnx.TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[num_bytes // 4]
    ).SerializeToString() + _field(9, num_bytes)
    tensor = _field(5, len(tensor) + num_bytes) + tensor
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _field(7, len(head) + len(tensor) + num_bytes) + head + tensor)
        file.truncate(file.tell() + num_bytes)


def _field(number, length):
    text, rest = bytes([number << 3 | 2]), length
    while rest > 127:
        text, rest = text + bytes([rest & 127 | 128]), rest >> 7
    return text + bytes([rest])


def write_bomb(path):
    """Some 200 bytes that ask for 3 GB."""
    shape = numpy_helper.from_array(np.array([1024, 3, 256, 1024], np.int64), "shape")
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["full"]), helper.make_node("Add", ["x", "full"], ["y"])]
    write(path, nodes, [value("x", "FP32", (1, 3, "h", 1))], [value("y", "FP32", (1024, 3, "h", 1024))], [shape])


def write_endless(path):
    """A picture's model that never comes to an end."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["goes_on_still"]), helper.make_node("Sin", ["before"], ["after"])],
        "step",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            value("before", "FP32", ("n", 3, "h", "w")),
        ],
        [
            helper.make_tensor_value_info("goes_on_still", TensorProto.BOOL, []),
            value("after", "FP32", ("n", 3, "h", "w")),
        ],
    )
    steps = helper.make_tensor("steps", TensorProto.INT64, [], [2**62])
    shape = ("n", 3, "h", "w")
    write(
        path,
        [helper.make_node("Loop", ["steps", "", "x"], ["y"], body=step)],
        [value("x", "FP32", shape)],
        [value("y", "FP32", shape)],
        [steps],
    )


def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def growth_of(call):
    """Return by how much the peak of this process grows in a call."""
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    call()
    return peak_bytes() - before


def test_a_large_model_is_described_without_its_weights(tmp_path):
    write_large(tmp_path / "large.onnx", LARGE)
    facts = []
    assert growth_of(lambda: facts.append(read_metadata(str(tmp_path / "large.onnx")))) < REPLICA_MAY_GROW
    assert [(fact.name, fact.shape) for fact in facts[0].inputs] == [("x", (LARGE // 4,))]


def test_of_a_large_model_that_cannot_be_loaded_a_text_is_kept(tmp_path):
    write_large(tmp_path / "odd.onnx", LARGE, op="Nonsense", domain="nobody")

    async def story():
        cache = ModelMetadataCache(asyncio.to_thread)
        with pytest.raises(ModelLoadError, match="Nonsense"):
            await cache.get(str(tmp_path / "odd.onnx"), "1", 60.0)
        assert "Nonsense" in cache.broken()[str(tmp_path / "odd.onnx")]

    assert growth_of(lambda: asyncio.run(story())) < REPLICA_MAY_GROW


def test_a_small_file_that_asks_for_much_memory_harms_nobody(tmp_path):
    write_bomb(tmp_path / "bomb.onnx")
    assert (tmp_path / "bomb.onnx").stat().st_size < 250
    assert growth_of(lambda: find_model(tmp_path / "bomb.onnx")) < REPLICA_MAY_GROW
    assert not find_model(tmp_path / "bomb.onnx")[0].is_image_model  # its trial runs found no memory


def test_a_model_that_never_ends_is_not_tried_again_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "WITHIN_S", 4.0)
    write_endless(tmp_path / "endless.onnx")
    for within_s in (60.0, 0.5):
        began_s = time.monotonic()
        with pytest.raises(ModelLoadError, match=r"endless\.onnx cannot be tried out: .* 4 s.*Save a spec"):
            find_model(tmp_path / "endless.onnx")
        assert time.monotonic() - began_s < within_s
    (tmp_path / "endless.yaml").write_text(f"model_id: endless\nfile: {tmp_path / 'endless.onnx'}\n")
    assert [fact.name for fact in read_metadata(str(tmp_path / "endless.onnx")).inputs] == ["x"]


def test_an_inspection_is_known_to_other_processes_and_names(tmp_path, monkeypatch):
    add_number(tmp_path / "one.onnx", 1)
    spec, _ = find_model(tmp_path / "one.onnx")
    shutil.copyfile(tmp_path / "one.onnx", tmp_path / "two.onnx")
    add_number(tmp_path / "three.onnx", 3)
    monkeypatch.setattr(records, "_known", {})
    monkeypatch.setattr(records, "call_confined", None)
    assert find_model(tmp_path / "two.onnx")[0].unsure == spec.unsure
    with pytest.raises(TypeError):
        find_model(tmp_path / "three.onnx")


def test_a_stored_result_of_another_form_or_owner_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    add_number(path, 1)
    spec, _ = find_model(path)
    found, names = records.tensors_of(path), records.weight_files(path)
    folder = records._folder()
    contents = {file: file.read_text() for file in folder.iterdir()}
    assert len(contents) == 2
    assert not any(file.stat().st_mode & 0o077 for file in contents)
    asked = []

    def describe(*arguments, **_):
        asked.append(arguments)
        return records.describe_file(*arguments[1:])

    monkeypatch.setattr(records, "call_confined", describe)

    def check(is_asked):
        monkeypatch.setattr(records, "_known", {})
        asked.clear()
        assert (find_model(path)[0], records.tensors_of(path), records.weight_files(path)) == (spec, found, names)
        assert bool(asked) == is_asked

    check(False)
    for wrong in ("5", "[5]", "null", '{"inputs": 5}', '{"inputs": [], "outputs": [], "files": [5], "spec": {}}'):
        for file in contents:
            file.write_text(f'{{"result": {wrong}}}')
        check(True)
    for place, mode in ((folder, 0o777), *((file, 0o666) for file in contents)):
        before = place.stat().st_mode
        place.chmod(mode)
        check(True if place == folder else "spec" in contents[place])
        place.chmod(before)
    check(False)


def test_other_external_data_is_another_model(tmp_path):
    write(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", "FP32", (4096,))],
        [value("y", "FP32", (4096,))],
        [weights()],
    )
    onnx.save(
        onnx.load(tmp_path / "m.onnx"),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    assert [fact.name for fact in read_metadata(str(tmp_path / "m.onnx")).inputs] == ["x"]
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelLoadError, match=r"m\.data"):
        find_model(tmp_path / "m.onnx")


def test_an_inspection_reserves_its_memory_first(tmp_path):
    """External data is weighed by the process that reads the header; then its memory is reserved as well."""
    held = []

    @contextlib.contextmanager
    def hold(num_bytes):
        if len(held) == refused_at:
            raise ResourceExhaustedError("no memory is free")
        held.append(num_bytes)
        yield
        held.append(-num_bytes)

    path = tmp_path / "m.onnx"
    io = [value("x", "FP32", (4096,))], [value("y", "FP32", (4096,))]
    write(path, [helper.make_node("Add", ["x", "w"], ["y"])], *io, [weights()])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    small, data = path.stat().st_size, (tmp_path / "m.data").stat().st_size
    first, second = (records.BASE_BYTES + records.DATA_FACTOR * each for each in (small, small + data))
    refused_at = 0
    with pytest.raises(ResourceExhaustedError, match="no memory is free"):
        find_model(path, hold)
    refused_at = 2
    with pytest.raises(ResourceExhaustedError, match="no memory is free"):
        find_model(path, hold)
    held.clear()
    refused_at = None
    assert find_model(path, hold)[0].unsure
    assert held == [first, -first, second, -second]
    find_model(path, hold)  # known now
    assert len(held) == 4


def weights():
    return numpy_helper.from_array(np.ones(4096, np.float32), "w")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no model",
        b"\x3a\xff\xff\xff\xff\x7f",
        pytest.param(b"\x3a\x02\x0a\x00" * 1_100_000, marks=pytest.mark.slow),  # a million graphs
        b"\xff" * 5_000_000,
    ],
)
def test_what_is_no_model_is_said_to_be_none(tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"bad\.onnx"):
        read_metadata(str(tmp_path / "bad.onnx"))
