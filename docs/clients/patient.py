"""Asks several prompts at once, waits for a server that still loads, and shows errors."""

import time

import httpx

URL = "http://localhost:8080/v1/models/eleutherai-gpt-j-6b:predict"


def predict(prompts, *, patience=600, **parameters):
    """Return a list of texts for every prompt."""
    deadline = time.monotonic() + patience
    while True:
        body = {"instances": prompts, "parameters": parameters}
        response = httpx.post(URL, json=body, timeout=300)
        if response.status_code != 503 or time.monotonic() > deadline:
            break
        time.sleep(float(response.headers.get("Retry-After", 5)))
    answer = response.json()
    if "error" in answer:
        raise ValueError(answer["error"])
    predictions = answer["predictions"]
    lists = predictions if len(prompts) > 1 else [predictions]
    return [[one["generated_text"] for one in texts] for texts in lists]


for texts in predict(
    ["The secret to a happy life is to", "Right now is the perfect time to"],
    temperature=0,
    max_new_tokens=12,
    return_full_text=False,
):
    print(texts)
try:
    predict(["Hello"], top_k=-1)
except ValueError as error:
    print(error)
