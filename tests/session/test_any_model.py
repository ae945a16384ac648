"""Any ONNX file that ONNX Runtime runs: old operator sets, fixed sizes, odd graphs; raw results are ONNX Runtime's own,
frames where they make sense."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray import InferenceSession, errors
from genai_ray.catalog import dump_spec
from genai_ray.inspection import inspect_model
from genai_ray.session import SessionLimits, describe_seams

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
FRAMES = np.random.default_rng(3).integers(0, 256, (2, 70, 90, 3), np.uint8)


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path, nodes, inputs, outputs, weights=(), opset=17, domains=(), ir=8):
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=ir).SerializeToString())
    return path


def save_upscaler(path, *, opset=17, channels=3, scale=3, size=("h", "w"), batch="n", kind=FLOAT):
    """A 3x3 convolution that keeps the picture and sharpens it a little, then DepthToSpace."""
    kernel = np.zeros((channels * scale**2, channels, 3, 3), np.float32)
    for channel in range(channels):
        for phase in range(scale**2):  # DepthToSpace takes the channels of a phase together
            kernel[phase * channels + channel, channel] = np.array(
                [[0, -0.1, 0], [-0.1, 1.4 - phase / 50, -0.1], [0, -0.1, 0]]
            )
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=scale),
    ]
    height, width = size
    large = [length * scale if isinstance(length, int) else f"s{length}" for length in size]
    weights = {"k": kernel.astype(helper.tensor_dtype_to_np_dtype(kind))}
    ends = [value("x", [batch, channels, height, width], kind)], [value("y", [batch, channels, *large], kind)]
    return save(path, nodes, *ends, weights, opset, ir=4 if opset < 10 else 8)


def open_plain(path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_plain(path, feeds):
    session = open_plain(path)
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def open_session(path, **options):
    """Open a model with the spec that trial runs give; they are made in this process, which is quicker."""
    spec = path.with_suffix(".yaml")
    if not spec.exists():
        spec.write_text(dump_spec(inspect_model(path)))
    return InferenceSession(path, **options)


def check_raw(path, feeds):
    """Raw results are those of ONNX Runtime alone."""
    expected = run_plain(path, feeds)
    with open_session(path) as session:
        outputs = session.run(feeds)
    assert set(outputs) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opset", "channels"), [(7, 3), (7, 1), (8, 3), (9, 3), (10, 1), (11, 3), (13, 1), (14, 1), (15, 3), (21, 1)]
)
def test_frames_and_raw_tensors_in_any_operator_set(tmp_path, opset, channels):
    path = save_upscaler(tmp_path / "net.onnx", opset=opset, channels=channels)
    check_raw(path, {"x": np.random.default_rng(0).random((2, channels, 20, 30), np.float32)})
    usual = save_upscaler(tmp_path / "usual.onnx", channels=channels)
    with open_session(path) as session, open_session(usual) as other:
        assert (session.spec.scale, session.spec.receptive_field_px, session.spec.batchable) == (3, 1, True)
        for frames in (FRAMES, FRAMES.astype(np.uint16) * 257, FRAMES.astype(np.float32) / 255):
            found, expected = session.infer(frames), other.infer(frames)
            assert found.shape == (2, 210, 270, 3)
            assert np.array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [["n", 1, 1, 1], ["n"], [1], []])
@pytest.mark.parametrize("opset", [7, 13])
def test_an_extra_input_takes_one_value_for_all_frames(tmp_path, opset, shape):
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"])]
    if shape == ["n"]:
        nodes = [helper.make_node("Reshape", ["s", "form"], ["t"]), helper.make_node("Mul", ["x", "t"], ["y"])]
    picture = ["n", 3, "h", "w"]
    path = save(
        tmp_path / "dim.onnx",
        nodes,
        [value("x", picture), value("s", shape)],
        [value("y", picture)],
        {"form": np.array([-1, 1, 1, 1])},
        opset,
        ir=4,
    )
    check_raw(
        path,
        {
            "x": np.ones((2, 3, 5, 7), np.float32),
            "s": np.full([2 if axis == "n" else axis for axis in shape], 0.25, np.float32),
        },
    )
    with open_session(path) as session:
        found = session.infer(FRAMES, {"s": 0.25})
    assert np.abs(found - FRAMES * 0.25).max() <= 0.5


def test_a_model_of_half_precision_takes_frames(tmp_path):
    path = save_upscaler(tmp_path / "half.onnx", kind=HALF)
    with InferenceSession(path) as half, open_session(save_upscaler(tmp_path / "usual.onnx")) as usual:
        assert half.spec.scale == 3
        assert np.abs(half.infer(FRAMES).astype(np.int32) - usual.infer(FRAMES)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "scale", "batch"),
    [((48, 64), 2, 1), ((64, 64), 2, "n"), ((64, "w"), 1, 1), (("h", 48), 2, 1), ((48, 64), 1, "n")],
)
def test_frames_are_tiled_to_a_fixed_size(tmp_path, size, scale, batch):
    fixed = save_upscaler(tmp_path / "fixed.onnx", scale=scale, size=size, batch=batch)
    free = save_upscaler(tmp_path / "free.onnx", scale=scale)
    generator = np.random.default_rng(4)
    with open_session(fixed) as session, open_session(free) as whole:
        for height, width in ((70, 90), (200, 65), (48, 64), (64, 48), (31, 300), (8, 8), (1, 1)):
            frames = generator.integers(0, 256, (2, height, width, 3), np.uint8)
            found, expected = session.infer(frames), whole.infer(frames)
            assert found.shape == (2, scale * height, scale * width, 3)
            # A frame smaller than the size is extended, and its new neighbours are seen at its edge.
            rows = scale * (height - (isinstance(size[0], int) and height < size[0]))
            columns = scale * (width - (isinstance(size[1], int) and width < size[1]))
            assert np.array_equal(found[:, :rows, :columns], expected[:, :rows, :columns]), (height, width)
        session.warmup()


def test_a_net_of_luma_and_a_fixed_size_is_tiled(tmp_path):
    fixed = save_upscaler(tmp_path / "fixed.onnx", channels=1, scale=1, size=(224, 224), batch=1)
    free = save_upscaler(tmp_path / "free.onnx", channels=1, scale=1)
    frame = np.random.default_rng(5).integers(0, 256, (230, 300, 3), np.uint8)
    with open_session(fixed) as session, open_session(free) as whole:
        assert np.array_equal(session.infer(frame), whole.infer(frame))
        assert session.runtime_calls == 4


def save_rounding_up(path):
    """An upscaler by 2 of a picture that the graph pads to multiples of 8, without cropping its result."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "four"], ["size"]),
        helper.make_node("Neg", ["size"], ["below"]),
        helper.make_node("Mod", ["below", "eight"], ["extra"]),
        helper.make_node("Concat", ["zeros", "extra"], ["pads"], axis=0),
        helper.make_node("Pad", ["x", "pads"], ["padded"], mode="edge"),
        helper.make_node("Resize", ["padded", "", "scales"], ["y"], mode="nearest"),
    ]
    weights = {
        "two": np.array([2]),
        "four": np.array([4]),
        "eight": np.array([8]),
        "zeros": np.zeros(6, np.int64),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    return save(path, nodes, [value("x", ["n", 3, "h", "w"])], [value("y", ["n", 3, "h2", "w2"])], weights)


def test_an_output_that_is_rounded_up_is_found_by_trial(tmp_path):
    with open_session(save_rounding_up(tmp_path / "up.onnx")) as session:
        assert (session.spec.scale, session.spec.size_multiple) == (2, 8)
        for height, width in ((70, 90), (64, 48), (5, 3)):
            frame = FRAMES[0, :height, :width]
            assert np.array_equal(session.infer(frame), frame.repeat(2, 0).repeat(2, 1))


def save_mean(path, size):
    """A picture less a tenth of its mean: every pixel sees the whole frame."""
    shape = [1, 3, *size]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Mul", ["m", "k"], ["d"]),
        helper.make_node("Sub", ["x", "d"], ["y"]),
    ]
    return save(path, nodes, [value("x", shape)], [value("y", shape)], {"k": np.float32(0.1)})


def test_tiles_that_may_differ_from_the_whole_frame_are_told_of(tmp_path, caplog):
    note = (
        "mean.onnx takes only 64x48: frames are tiled with a halo of 12 px, its receptive field is not known; "
        "seams may show"
    )
    with open_session(save_mean(tmp_path / "mean.onnx", (48, 64))) as session:
        assert session.status()["notes"] == [note]
    assert [record.getMessage() for record in caplog.records if "seams" in record.getMessage()] == [note]
    with open_session(
        tmp_path / "mean.onnx", limits=SessionLimits(max_frame=(40, 64))
    ) as session:  # one tile is the whole frame
        assert session.status()["notes"] == []
    with open_session(save_upscaler(tmp_path / "near.onnx", size=(48, 64), batch=1)) as session:
        assert session.status()["notes"] == []
        wide = session.spec.model_copy(update={"receptive_field_px": 13})
    assert (
        describe_seams(wide)
        == "near.onnx takes only 64x48: frames are tiled with a halo of 12 px, its receptive field is 13 px; "
        "seams may show"
    )
    assert describe_seams(wide.model_copy(update={"receptive_field_px": 12})) is None


def test_pairs_are_tiled_to_a_fixed_size(tmp_path):
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["sum", "half"], ["y"])]
    shape = [1, 3, 32, 48]
    path = save(
        tmp_path / "mean.onnx",
        nodes,
        [value("a", shape), value("b", shape)],
        [value("y", shape)],
        {"half": np.float32(0.5)},
    )
    with open_session(path) as session:
        found = session.infer(FRAMES)
    assert found.shape == (1, 70, 90, 3)
    assert np.abs(found[0] - FRAMES.astype(np.float64).mean(axis=0)).max() <= 0.5


def odd_graphs(folder):
    """Models that ONNX Runtime runs and ONNX's own checker refuses, or that have something that is no tensor; each with
    its inputs."""
    rows, chain = ["n", 2], [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]
    x = {"x": np.arange(-3, 3, dtype=np.float32).reshape(3, 2)}
    yield save(folder / "unsorted.onnx", chain[::-1], [value("x", rows)], [value("y", rows)]), x
    yield save(folder / "tapped.onnx", chain, [value("x", rows)], [value("y", rows), onnx.ValueInfoProto(name="h")]), x
    yield save(folder / "no-shape.onnx", chain, [value("x", rows)], [value("y", None)]), x
    yield save(folder / "no-shape-in.onnx", chain, [value("x", None)], [value("y", None)]), x
    gelu = [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]
    yield save(folder / "no-import.onnx", gelu, [value("x", rows)], [value("y", None)]), x
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, None)
    both = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), helper.make_node("Neg", ["x"], ["y"])]
    yield save(folder / "sequence.onnx", both, [value("x", rows)], [value("y", rows), sequence]), x
    yield (
        save(
            folder / "dead.onnx",
            [*chain, helper.make_node("Exp", ["h"], ["unused"])],
            [value("x", rows)],
            [value("y", rows)],
        ),
        x,
    )


@pytest.mark.slow
def test_the_runtime_is_the_judge_of_a_graph(tmp_path):
    for path, feeds in odd_graphs(tmp_path):
        expected = run_plain(path, feeds)
        with open_session(path) as session:
            session.warmup()
            outputs = session.run(feeds)
            assert set(outputs) == set(expected), path.name
            for name, array in expected.items():
                np.testing.assert_array_equal(outputs[name], array, err_msg=path.name)
            with pytest.raises(errors.InvalidInputError, match="not an image model"):
                session.infer(FRAMES)


def test_the_words_of_the_checker_are_a_note(tmp_path):
    unsorted, *_ = (path for path, _ in odd_graphs(tmp_path))
    assert any("topologically sorted" in line for line in inspect_model(unsorted).unsure)


def test_an_image_model_may_be_unsorted_and_tapped(tmp_path):
    path = save_upscaler(tmp_path / "net.onnx")
    model = onnx.load(path)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output.append(onnx.ValueInfoProto(name="c"))
    (odd := tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with open_session(path) as plain, open_session(odd) as session:
        assert session.spec.receptive_field_px == plain.spec.receptive_field_px == 1
        assert np.array_equal(session.infer(FRAMES), plain.infer(FRAMES))


def test_a_branch_of_a_graph_may_see_the_picture(tmp_path):
    def branch(name, kind):
        return helper.make_graph([helper.make_node(kind, ["x"], [name])], name, [], [value(name, None)])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["is_bright"]),
        helper.make_node(
            "If",
            ["is_bright"],
            ["y"],
            then_branch=branch("output", "Identity"),
            else_branch=branch("frames", "Identity"),
        ),
    ]
    shape = ["n", 3, "h", "w"]
    path = save(tmp_path / "if.onnx", nodes, [value("x", shape)], [value("y", shape)], {"limit": np.float32(0.5)})
    with open_session(path) as session:
        assert np.array_equal(session.infer(FRAMES), FRAMES)


def test_a_model_that_cannot_be_fused_keeps_its_raw_interface(tmp_path):
    shape = ["n", 3, "h", "w"]
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = save(tmp_path / "old.onnx", nodes, [value("x", shape)], [value("y", shape)], opset=6, ir=3)
    with InferenceSession(path) as session:
        assert any("operator set 6" in line for line in session.spec.unsure)
        with pytest.raises(errors.InvalidInputError, match="not an image model"):
            session.infer(FRAMES)


def save_outside(path, num_rows, opset=17):
    """A table whose rows lie in a file beside it."""
    table = TensorProto(name="table", data_type=FLOAT, dims=[num_rows, 1024], data_location=TensorProto.EXTERNAL)
    for key, word in {"location": "table.bin", "offset": "0", "length": str(num_rows * 4096)}.items():
        table.external_data.add(key=key, value=word)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "at"], ["y"])],
        "g",
        [value("at", ["n"], TensorProto.INT64)],
        [value("y", ["n", 1024])],
        [table],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()
    )
    with (path.parent / "table.bin").open("wb") as file:
        file.truncate(num_rows * 4096)
        file.seek((num_rows - 1) * 4096)
        file.write(np.arange(1024, dtype=np.float32).tobytes())
    return path


@pytest.mark.slow
def test_more_than_two_gigabytes_of_external_data(tmp_path):
    num_rows = 2_300_000_000 // 4096
    path = save_outside(tmp_path / "big.onnx", num_rows)
    with open_session(path) as session:
        session.warmup()
        outputs = session.run({"at": np.array([0, num_rows - 1])})
        assert session.memory_bytes < 300_000_000
    assert np.array_equal(outputs["y"], [np.zeros(1024), np.arange(1024)])


def test_weights_in_other_files(tmp_path):
    usual = save_upscaler(tmp_path / "usual.onnx")
    (tmp_path / "outside").mkdir()
    model, path = onnx.load(usual), tmp_path / "outside" / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    check_raw(path, {"x": np.ones((1, 3, 20, 30), np.float32)})
    for precision in ("fp32", "fp16"):
        with open_session(path, precision=precision) as session, open_session(usual, precision=precision) as whole:
            assert session.spec.receptive_field_px == 1
            assert np.array_equal(session.infer(FRAMES), whole.infer(FRAMES))
    (tmp_path / "outside" / "weights.bin").unlink()
    with pytest.raises(errors.ModelLoadError, match=r"weights\.bin"):
        InferenceSession(path)


@pytest.mark.slow
def test_the_files_of_public_reports(shared, tmp_path):
    """Each runs as ONNX Runtime alone runs it, or is refused as it refuses it; image models take frames."""
    folder = shared / "cases" / "models"
    if not folder.is_dir():
        pytest.skip("../shared/cases is not here")
    generator, results = np.random.default_rng(0), {}
    for file in sorted(folder.glob("*.onnx")):
        path = Path(shutil.copy(file, tmp_path))
        try:
            plain = open_plain(path)
        except Exception:  # noqa: BLE001 - whatever it raises
            with pytest.raises(errors.ModelLoadError):
                open_session(path)
            continue
        feeds = {}
        for info in plain.get_inputs():
            shape = [
                axis if isinstance(axis, int) else 2 if index == 0 else 24 for index, axis in enumerate(info.shape)
            ]
            feeds[info.name] = (
                np.full(shape, "word", object) if "string" in info.type else generator.random(shape, np.float32)
            )
        expected = run_plain(path, feeds)
        with open_session(path) as session:
            spec, outputs = session.spec, session.run(feeds)
            for name, array in expected.items():
                if isinstance(array, np.ndarray):
                    np.testing.assert_array_equal(outputs[name], array, err_msg=f"{path.name} {name}")
                else:
                    assert all(np.array_equal(a, b) for a, b in zip(outputs[name], array, strict=True)), path.name
            if spec.is_image_model:
                results[path.stem] = session.infer(FRAMES)
                assert results[path.stem].shape == (2, 70 * spec.scale, 90 * spec.scale, 3), path.name
    sizes = {name: found.shape[1] // 70 for name, found in results.items()}
    for name in (path.stem for path in folder.glob("op*.onnx")):
        assert sizes[name] == (1 if "sigma" in name else 2 if "x2" in name else 3)
    assert sizes["x2-rgb-fixed48x64-noyaml"] == 2
