"""Models that ONNX Runtime runs although their files leave things out, over HTTP: they are described and served, or
refused with a reason."""

import contextlib
import json
import shutil

import numpy as np
import onnx
import pytest

from genai_ray.serve.engine.model_metadata import read_metadata
from tests.serve.test_web import application, ask
from tests.session.test_any_model import odd_graphs, run_plain

ROWS = np.arange(-3, 3, dtype=np.float32).reshape(3, 2)
CASES = ("zipmap", "op07-x3-luma", "op17-x2-rgb-fixed64")
"""Of the files of public reports; tests/session goes through all of them."""


def test_what_a_file_leaves_out_the_runtime_tells(tmp_path):
    facts = {path.stem: read_metadata(str(path)) for path, _ in odd_graphs(tmp_path)}
    for name in ("unsorted", "tapped", "no-shape", "no-import", "sequence", "dead"):
        assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in facts[name].inputs] == [
            ("x", "FP32", (-1, 2))
        ], name
        assert ("y", "FP32", (-1, 2)) in [
            (tensor.name, tensor.datatype, tensor.shape) for tensor in facts[name].outputs
        ], name
    assert [tensor.name for tensor in facts["tapped"].outputs] == ["y", "h"]
    assert [tensor.name for tensor in facts["sequence"].outputs] == ["y"]
    (unknown,) = facts["no-shape-in"].inputs
    assert (unknown.datatype, unknown.is_rank_known) == ("FP32", False)


@pytest.mark.slow
def test_odd_models_over_http(ray_session, tmp_path, shared):
    def infer(name, feeds, outputs=()):
        inputs = [
            {"name": key, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
            for key, array in feeds.items()
        ]
        body = json.dumps(
            {"inputs": inputs, **({"outputs": [{"name": output} for output in outputs]} if outputs else {})}
        )
        return ask(app, "POST", f"/v2/models/{name}/infer", body.encode())

    repository = tmp_path / "models"
    repository.mkdir()
    wanted = {path.stem: (path, feeds) for path, feeds in odd_graphs(tmp_path) if path.stem in ("tapped", "sequence")}
    for path, _ in wanted.values():
        shutil.copy(path, repository)
    for name in CASES:
        path = repository / f"{name}.onnx"
        shutil.copy(shared / "cases" / "models" / path.name, path)
        shape = {"zipmap": [4, 2], "op07-x3-luma": [1, 1, 8, 9]}.get(name, [1, 3, 64, 64])
        wanted[name] = path, {value.name: np.full(shape, 0.5, np.float32) for value in onnx.load(path).graph.input}
    with contextlib.ExitStack() as stack:
        app = stack.enter_context(application(tmp_path / "videos", repository))
        for name, (path, feeds) in wanted.items():
            assert ask(app, "GET", f"/v2/models/{name}")[0] == 200
            status, body, _ = infer(name, feeds)
            assert status == 200, (name, body)
            expected = {key: array for key, array in run_plain(path, feeds).items() if isinstance(array, np.ndarray)}
            told = {
                output["name"]: np.array(output["data"]).reshape(output["shape"])
                for output in json.loads(body)["outputs"]
            }
            assert set(told) == set(expected), name
            for key, array in expected.items():
                np.testing.assert_allclose(told[key], array, rtol=1e-6, err_msg=f"{name} {key}")
        status, body, _ = infer("sequence", wanted["sequence"][1], ["s"])
        assert (status, "'s'" in json.loads(body)["error"]) == (400, True)
        picture = {"name": "frames", "datatype": "UINT8", "shape": [1, 70, 90, 3], "data": [128] * 70 * 90 * 3}
        for name, scale in (("op07-x3-luma", 3), ("op17-x2-rgb-fixed64", 2)):
            status, body, _ = ask(
                app,
                "POST",
                f"/v2/models/{name}/infer",
                json.dumps({"inputs": [picture], "parameters": {"frames": True}}).encode(),
            )
            assert status == 200, body
            assert json.loads(body)["outputs"][0]["shape"] == [1, 70 * scale, 90 * scale, 3]
