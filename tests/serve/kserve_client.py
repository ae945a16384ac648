"""KServe's own client against an endpoint; run by the Python of an environment that has it: HTTP_ADDRESS GRPC_ADDRESS
IN.npz OUT.npz."""

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs
from kserve.protocol.infer_type import RequestedOutput


def request(model, name, array, datatype, *, binary, parameters=None, outputs=None):
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    wanted = [RequestedOutput(one, {"binary_data": binary}) for one in outputs or ()]
    return InferRequest(model, [tensor], "seven", parameters=parameters, request_outputs=wanted)


async def rest(address, given):
    found, told = {}, {}
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=120)) as client:
        told["live"], told["ready"] = await client.is_server_live(address), await client.is_server_ready(address)
        for way, binary in (("binary", True), ("json", False)):
            asked = request("websr-x2-s", "input", given["tensor"], "FP32", binary=binary, outputs=["output"])
            answer = await client.infer(address, asked, "websr-x2-s")
            found[f"rest_{way}"] = answer.outputs[0].as_numpy()
            told[f"id_{way}"] = answer.id
        asked = request(
            "websr-x2-s",
            "frames",
            given["frames"],
            "UINT8",
            binary=True,
            parameters={"frames": True},
            outputs=["output"],
        )
        found["rest_frames"] = (await client.infer(address, asked, "websr-x2-s")).outputs[0].as_numpy()
        told["model_ready"] = await client.is_model_ready(address, "websr-x2-s")
        told["nothing_ready"] = await client.is_model_ready(address, "nothing")
        try:
            await client.infer(address, request("nothing", "x", given["tensor"], "FP32", binary=True), "nothing")
        except Exception as exc:  # noqa: BLE001 - what it is, is what is asked
            told["rest_error"] = f"{type(exc).__name__} {exc}"
    return found, told


async def rpc(address, given):
    found, told = {}, {}
    async with InferenceGRPCClient(address, timeout=120) as client:
        told["grpc_live"], told["grpc_ready"] = await client.is_server_live(), await client.is_server_ready()
        answer = await client.infer(request("websr-x2-s", "input", given["tensor"], "FP32", binary=True))
        found["grpc_tensor"] = answer.outputs[0].as_numpy()
        told["grpc_model_ready"] = await client.is_model_ready("websr-x2-s")
        try:
            await client.infer(request("nothing", "x", given["tensor"], "FP32", binary=True))
        except Exception as exc:  # noqa: BLE001
            told["grpc_error"] = f"{type(exc).__name__} {exc}"
    with grpc.insecure_channel(address) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        told["server"] = stub.ServerMetadata(messages.ServerMetadataRequest()).name
        model = stub.ModelMetadata(messages.ModelMetadataRequest(name="websr-x2-s"))
        told["inputs"] = [[one.name, one.datatype, list(one.shape)] for one in model.inputs]
    return found, told


async def main(http_address, grpc_address, given, out):
    found, told = await rest(f"http://{http_address}", given)
    more, more_told = await rpc(grpc_address, given)
    np.savez(out, **found, **more)
    print(json.dumps(told | more_told))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], dict(np.load(sys.argv[3])), sys.argv[4]))
