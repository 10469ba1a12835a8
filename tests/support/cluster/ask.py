"""One request from a pod: ``python ask.py URL [BODY]`` prints status and body as one line of JSON.

The cluster suite runs this file in a pod of the predictor's image, so it imports the standard
library alone.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

#: Longer than any start that the suite waits for.
TIMEOUT = 600.0


def ask(url: str, body: str | None = None) -> dict[str, object]:
    """Status and body of the answer; status 0, and why, where there was none."""
    request = urllib.request.Request(url, body.encode() if body is not None else None)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return {"status": answer.status, "body": answer.read().decode()}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": error.read().decode()}
    except OSError as error:
        return {"status": 0, "body": str(error)}


if __name__ == "__main__":
    print(json.dumps(ask(*sys.argv[1:])))
