"""The path of a model that is not packaged, end to end: pulled from a server, loaded, used, and run over a video.

The net is made here with u2net's exact interface ("input.1" [1, 3, 320, 320], seven masks [1, 1, 320, 320], the first
of which counts): it finds what is brighter than the mean of ImageNet.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_ray import ModelCatalog
from genai_ray.catalog import dump_spec
from tests.processes import run
from tests.video.clips import write

USE = """
import json, numpy as np
from genai_ray import ModelCache
frames = np.zeros((2, 90, 70, 3), np.uint8)
frames[:, 20:60, 10:50] = 255
with ModelCache(1_000_000_000) as cache:
    cache.load_model("u2net", memory_bytes=300_000_000)
    mask = cache.get_session("u2net").infer(frames)
    found = [mask.shape, str(mask.dtype), int(mask[0, 40, 30, 0]), int(mask[1, 5, 5, 0]), cache.loaded_models()]
    print(json.dumps(found))
"""


def build_net(path):
    weights = [numpy_helper.from_array(np.full((1, 3, 1, 1), 3.0, np.float32), "k")]
    nodes, outputs = [helper.make_node("Conv", ["input.1", "k"], ["c"])], []
    for number in range(1959, 1966):
        nodes.append(helper.make_node("Sigmoid", ["c"], [str(number)]))
        outputs.append(helper.make_tensor_value_info(str(number), TensorProto.FLOAT, [1, 1, 320, 320]))
    source = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, 320, 320])
    graph = helper.make_graph(nodes, "u2net", [source], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)


@pytest.fixture
def folder(tmp_path):
    """A user's model folder whose YAML says where this u2net is: on a server that runs now."""
    served, folder = tmp_path / "served", tmp_path / "models"
    served.mkdir()
    folder.mkdir()
    build_net(served / "u2net.onnx")
    data = (served / "u2net.onnx").read_bytes()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, directory=str(served), **options)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    update = {
        "url": f"http://127.0.0.1:{server.server_port}/u2net.onnx",
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (folder / "u2net.yaml").write_text(dump_spec(ModelCatalog.default().get("u2net").model_copy(update=update)))
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_u2net_from_the_server_to_the_video(folder, tmp_path):
    environment = os.environ | {"GENAI_RAY_MODELS": str(folder)}
    source, output = write(tmp_path / "a.mp4", pts=list(range(6))), tmp_path / "b.mp4"
    refused = run("enhance", source, "-o", output, "--model", "u2net", env=environment)
    assert refused.returncode == 2
    assert "genai-ray models pull u2net" in refused.stderr

    pulled = run("models", "pull", "u2net", env=environment)
    assert (pulled.returncode, pulled.stdout.strip()) == (0, str(folder / "u2net.onnx")), pulled.stderr

    used = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True, env=environment)
    shape, dtype, inside, outside, loaded = json.loads(used.stdout)
    assert (shape, dtype, loaded) == ([2, 90, 70, 1], "uint8", ["u2net"])
    assert inside > 250
    assert outside < 5

    done = run("enhance", source, "-o", output, "--model", "u2net", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 6
    with av.open(str(source)) as before, av.open(str(output)) as after:
        pairs = [
            (a.to_ndarray(format="rgb24"), b.to_ndarray(format="rgb24"))
            for a, b in zip(before.decode(video=0), after.decode(video=0), strict=True)
        ]
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    levels = np.concatenate([((a / 255 - mean) / deviation).sum(-1).ravel() for a, _ in pairs])
    bright, dark = levels > 1.8, levels < -1.8
    assert min(bright.sum(), dark.sum()) > 1000
    results = np.concatenate([b.reshape(-1, 3) for _, b in pairs]).astype(int)
    sources = np.concatenate([a.reshape(-1, 3) for a, _ in pairs]).astype(int)
    assert np.median(np.abs(results - sources)[bright]) < 12  # the subject stays
    assert np.median(np.abs(results - (0, 177, 64))[dark]) < 12  # green behind it
