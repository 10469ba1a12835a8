"""Completion requests that are refused, and what the errors must name."""

from __future__ import annotations

import json


def body(prompt: object = "The secret to a happy life is to", **fields: object) -> str:
    return json.dumps({"prompt": prompt, **fields})


#: What is sent, the ``param`` of the error, and what it must name.
UNREADABLE: dict[str, tuple[str | bytes, str | None, list[str]]] = {
    "malformed": ('{"prompt": "a"', None, ["not JSON"]),
    "bad utf-8": (b'{"prompt": "\xff\xfe"}', None, ["not JSON"]),
    "lone surrogate": ('{"prompt": "\\ud800"}', None, ["surrogate"]),
    "a list": ("[1]", None, ["[1]", "an object"]),
    "no prompt": ("{}", "prompt", ["prompt", "missing", "a string"]),
    "a number as prompt": (body(7), "prompt", ["7", "a string"]),
    "no prompts": (body([]), "prompt", ["[]", "a string"]),
    "too many prompts": (body(["a"] * 33), "prompt", ["33", "1 to 32"]),
    "too many lists": (body([[1]] * 33), "prompt", ["33", "1 to 32"]),
    "text among ids": (body([1, "a"]), "prompt", ["prompt[1]", '"a"', "0 to 2047"]),
    "true among ids": (body([1, True]), "prompt", ["prompt[1]", "true"]),
    "2.5 among ids": (body([1, 2.5]), "prompt", ["prompt[1]", "2.5"]),
    "id beyond": (body([[1], [2, 2048]]), "prompt", ["prompt[1][1]", "2048", "0 to 2047"]),
    "id negative": (body([-1]), "prompt", ["prompt[0]", "-1", "0 to 2047"]),
    "ids among texts": (body(["a", [1]]), "prompt", ["prompt[1]", "[1]", "a string"]),
    "text among lists": (body([[1], "a"]), "prompt", ["prompt[1]", "a list of token ids"]),
    "an object in the list": (body([{"text": "a"}]), "prompt", ["prompt[0]", "list"]),
    "unknown": (body(max_tokns=5), "max_tokns", ["did you mean max_tokens"]),
    "unknown and null": (body(tok_k=None), "tok_k", ["did you mean top_k"]),
    "V1's name of max_tokens": (body(max_new_tokens=5), "max_new_tokens", ["use max_tokens"]),
    "V1's name of n": (body(num_return_sequences=5), "num_return_sequences", ["use n"]),
    "V1's name of echo": (body(return_full_text=True), "return_full_text", ["use echo"]),
    "suffix": (body(suffix="b"), "suffix", ['"b"', "leave it out"]),
    "no object": (body(stream_options=1), "stream_options", ["1", "include_usage"]),
    "stream option": (
        body(stream=True, stream_options={"usage": True}),
        "stream_options",
        ["stream_options.usage", "did you mean include_usage"],
    ),
    "stream option's value": (
        body(stream=True, stream_options={"include_usage": 1}),
        "stream_options",
        ["stream_options.include_usage", "1", "true or false"],
    ),
    "no stream": (body(stream_options={"include_usage": True}), "stream_options", ["stream"]),
    "model": (body(model=1), "model", ["1", "a string"]),
    "user": (body(user=1), "user", ["1", "a string"]),
    "n": (body(n=9), "n", ["9", "1 to 8"]),
    "true for n": (body(n=True), "n", ["true", "1 to 8"]),
    "echo": (body(echo="yes"), "echo", ['"yes"', "true or false"]),
    "max_tokens": (body(max_tokens=2049), "max_tokens", ["2049", "2048"]),
    "max_tokens negative": (body(max_tokens=-1), "max_tokens", ["-1", "2048"]),
    "max_tokens 2.5": (body(max_tokens=2.5), "max_tokens", ["2.5", "2048"]),
    "temperature": (body(temperature=6), "temperature", ["6", "0.01 to 5"]),
    "top_k": (body(top_k=-1), "top_k", ["-1", "0 (off)"]),
    "stop": (body(stop=["a"] * 5), "stop", ["1 to 4"]),
    "min above max": (body(min_new_tokens=9, max_tokens=8), "min_new_tokens", ["9", "max_tokens"]),
    "min above the default": (
        body(min_new_tokens=99),
        "min_new_tokens",
        ["99", "max_tokens", "16", "default"],
    ),
}
