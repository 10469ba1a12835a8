"""Wait until the service is healthy, ask it once over gRPC, and check the shape of its answer.

Arguments: model name, seconds to wait, one or more addresses of which one answers.
Environment: API_KEY_FILE, the server's file of API keys, if it has one.
"""

import os
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2, grpc_predict_v2_pb2_grpc

name, seconds, *addresses = sys.argv[1:]
deadline = time.monotonic() + float(seconds)
service = "inference.GRPCInferenceService"


def metadata():
    """The first API key of the file, if there is one."""
    path = os.environ.get("API_KEY_FILE")
    if path is None:
        return ()
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        sys.exit("the Secret with the API keys has none")
    return (("authorization", f"Bearer {keys[0]}"),)


def wait_until_healthy():
    """A channel to the address that says that it serves."""
    while True:
        for address in addresses:
            channel = grpc.insecure_channel(address)
            try:
                health = health_pb2_grpc.HealthStub(channel)
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return channel
                problem = "not serving"
            except grpc.RpcError as error:
                problem = f"{error.code().name}: {error.details()}"
            channel.close()
            print(f"{address}: {problem}", flush=True)
        if time.monotonic() > deadline:
            sys.exit(f"the model {name} was not ready within {seconds} s")
        time.sleep(5)


stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(wait_until_healthy())
prompt = "Right now is the perfect time to"
request = grpc_predict_v2_pb2.ModelInferRequest(model_name=name)
tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
tensor.contents.bytes_contents.append(prompt.encode())
request.parameters["max_new_tokens"].int64_param = 8
request.parameters["return_full_text"].bool_param = True
try:
    answer = stub.ModelInfer(request, metadata=metadata(), timeout=600)
except grpc.RpcError as error:
    sys.exit(f"the call was answered with {error.code().name}: {error.details()}")
texts = [
    text.decode()
    for output in answer.outputs
    if output.name == "generated_text"
    for text in output.contents.bytes_contents
]
if len(texts) != 1 or not texts[0].startswith(prompt):
    sys.exit(f"not the shape of an answer: {answer}")
print(texts[0])
