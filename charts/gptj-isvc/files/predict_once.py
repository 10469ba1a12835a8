"""Wait until the model is ready, ask it once, and check the shape of its answer.

Arguments: model name, seconds to wait, one or more base URLs of which one answers.
Environment: API_KEY_FILE, the server's file of API keys, if it has one; CERTIFICATE_FILE, the
server's certificate, for HTTPS.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

name, seconds, *bases = sys.argv[1:]
deadline = time.monotonic() + float(seconds)


def headers():
    """The first API key of the file, if there is one."""
    path = os.environ.get("API_KEY_FILE")
    if path is None:
        return {}
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        sys.exit("the Secret with the API keys has none")
    return {"Authorization": f"Bearer {keys[0]}"}


def trust():
    """Trust in the certificate of the file, whatever name it is for."""
    path = os.environ.get("CERTIFICATE_FILE")
    if path is None:
        return None
    context = ssl.create_default_context(cafile=path)
    context.check_hostname = False
    # Else a certificate that another has signed would need that one as well.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


context = trust()


def wait_until_ready():
    """The base URL that says that the model is ready."""
    while True:
        for base in bases:
            try:
                url = f"{base}/v1/models/{name}"
                with urllib.request.urlopen(url, timeout=60, context=context) as answer:
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
url = f"{base}/v1/models/{name}:predict"
request = urllib.request.Request(url, json.dumps(body).encode(), headers())
try:
    with urllib.request.urlopen(request, timeout=600, context=context) as answer:
        prediction = json.load(answer)
except urllib.error.HTTPError as error:
    sys.exit(f"the prediction was answered with {error.code}: {error.read().decode()}")
try:
    [[text]] = [[one["generated_text"]] for one in prediction["predictions"]]
    assert text.startswith(prompt)
except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
    sys.exit(f"not the shape of a prediction: {prediction}")
print(text)
