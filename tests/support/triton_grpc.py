"""Triton's gRPC client, in a process of its own: it and kserve both describe the protocol.

Called with the server's address and the model's name; prints what came as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PROMPT = "The secret to a happy life is to"

#: A fraction is a field of Triton's messages that KServe's do not have.
PARAMETERS = {"temperature": 0.5, "max_new_tokens": 12, "seed": 4, "do_sample": True}


def main(address: str, model: str) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - a test imports this file for the names above
    import tritonclient.grpc  # noqa: PLC0415
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    with tritonclient.grpc.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata(model, "1", as_json=True)
        tensor = tritonclient.grpc.InferInput("prompt", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([PROMPT], object))
        wanted = [tritonclient.grpc.InferRequestedOutput("generated_text")]
        answer = client.infer(
            model, [tensor], "1", wanted, request_id="mine", parameters=PARAMETERS
        )
        refusals = {}
        for name, parameters in {
            "number": {"temperature": 5.5},
            "unknown": {"temprature": 0.5},
        }.items():
            try:
                client.infer(model, [tensor], parameters=parameters)
            except InferenceServerException as error:
                refusals[name] = [error.status(), error.message()]
        return {
            "ready": client.is_server_ready() and client.is_model_ready(model),
            "outputs": [output["name"] for output in metadata["outputs"]],
            "texts": [text.decode() for text in answer.as_numpy("generated_text")],
            "id": answer.get_response(as_json=True)["id"],
            "refusals": refusals,
        }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
