"""Wait until the model is ready, ask it once, and check the shape of its answer.

Arguments: model name, seconds to wait, one or more base URLs of which one answers.
"""

import json
import sys
import time
import urllib.error
import urllib.request

name, seconds, *bases = sys.argv[1:]
deadline = time.monotonic() + float(seconds)


def wait_until_ready():
    """The base URL that says that the model is ready."""
    while True:
        for base in bases:
            try:
                with urllib.request.urlopen(f"{base}/v1/models/{name}", timeout=60) as answer:
                    if json.load(answer)["ready"] is True:
                        return base
                problem = "not ready"
            except (OSError, ValueError, KeyError) as error:
                problem = error
            print(f"{base}: {problem}", flush=True)
        if time.monotonic() > deadline:
            sys.exit(f"the model {name} was not ready within {seconds} s")
        time.sleep(5)


base = wait_until_ready()
prompt = "Right now is the perfect time to"
body = {"instances": [prompt], "parameters": {"max_new_tokens": 8}}
request = urllib.request.Request(f"{base}/v1/models/{name}:predict", json.dumps(body).encode())
try:
    with urllib.request.urlopen(request, timeout=600) as answer:
        prediction = json.load(answer)
except urllib.error.HTTPError as error:
    sys.exit(f"the prediction was answered with {error.code}: {error.read().decode()}")
try:
    [[text]] = [[one["generated_text"]] for one in prediction["predictions"]]
    assert text.startswith(prompt)
except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
    sys.exit(f"not the shape of a prediction: {prediction}")
print(text)
