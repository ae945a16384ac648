"""What the endpoint is measured against, each as its own documentation would have it: LitServe, MLServer, plain Ray
Serve.

Run in the peer's own environment; imports nothing of genai_ray."""

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def open_session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compute(session, data):
    (wanted,) = session.get_inputs()
    if wanted.type == "tensor(uint8)":
        array = np.frombuffer(data, np.uint8).reshape(
            -1, int(os.environ["PEER_HEIGHT"]), int(os.environ["PEER_WIDTH"]), 3
        )
    else:
        array = np.frombuffer(data, np.float32).reshape(1, -1)
    return session.run(None, {wanted.name: array})[0].tobytes()


try:
    import litserve
    from fastapi import Response
except ImportError:
    pass
else:

    class Api(litserve.LitAPI):
        """Its workers are spawned: they get the model's path by the environment."""

        def setup(self, device):
            self.session = open_session(os.environ["PEER_MODEL"])

        def decode_request(self, request):
            return request["frame"].file.read()

        def predict(self, data):
            return compute(self.session, data)

        def encode_response(self, output):
            return Response(output, media_type="application/octet-stream")


def run_litserve(port, path):
    os.environ["PEER_MODEL"] = path
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(port=port, host="127.0.0.1", generate_client_file=False, log_level="warning")


def run_multiplexed(port, path):
    """Two replicas, each with models of its own; PATH is one model, or a folder of which each replica keeps
    PEER_MODELS_EACH."""
    import signal

    os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
    import ray
    from ray import serve
    from starlette.responses import Response

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    most, log = int(os.environ["PEER_MODELS_EACH"]), os.environ["PEER_LOADS"]

    @serve.deployment(
        num_replicas=2,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=64,
        logging_config={"enable_access_log": False},
    )
    class Plain:
        @serve.multiplexed(max_num_models_per_replica=most)
        async def get_model(self, model_id):
            with Path(log).open("a") as file:
                file.write(f"{model_id}\n")
            return open_session(path if path.endswith(".onnx") else f"{path}/{model_id}.onnx")

        async def __call__(self, request):
            session = await self.get_model(serve.get_multiplexed_model_id())
            return Response(compute(session, await request.body()), media_type="application/octet-stream")

    serve.run(Plain.bind())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print("ready", flush=True)
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


try:
    import mlserver
    from mlserver.types import InferenceResponse, ResponseOutput
except ImportError:
    pass
else:
    import base64

    class OnnxRuntime(mlserver.MLModel):
        async def load(self):
            self.session = open_session(self.settings.parameters.uri)
            return True

        async def predict(self, payload):
            output = compute(self.session, base64.b64decode(payload.inputs[0].data[0]))
            data = ResponseOutput(name="output", datatype="BYTES", shape=[1], data=[base64.b64encode(output).decode()])
            return InferenceResponse(model_name=self.name, outputs=[data])


if __name__ == "__main__":
    {"litserve": run_litserve, "multiplexed": run_multiplexed}[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
