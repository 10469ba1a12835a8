"""Requests that are refused, and what the errors must name."""

from __future__ import annotations

import json


def body(instances: object = ("The secret to a happy life is to",), **parameters: object) -> str:
    return json.dumps({"instances": instances, "parameters": parameters})


def raw_parameters(text: str) -> str:
    """A body with parameters as they are written, for what Python's json would not write."""
    return f'{{"instances": ["a"], "parameters": {text}}}'


#: Bodies that are refused as they are read: what is sent, and what the error must name.
UNREADABLE: dict[str, tuple[str | bytes, list[str]]] = {
    "malformed": ('{"instances": ["a"', ["not JSON"]),
    "empty": ("", ["not JSON"]),
    "bad utf-8": (b'{"instances": ["\xff\xfe"]}', ["not JSON"]),
    "nested": ("[" * 5000 + "]" * 5000, ["not JSON"]),
    "nested parameters": (raw_parameters('{"a":' * 5000 + "1" + "}" * 5000), ["not JSON"]),
    "a list": ("[1, 2]", ["[1,2]", "an object"]),
    "a string": ('"hello"', ['"hello"', "an object"]),
    "null": ("null", ["null", "an object"]),
    "no instances": ("{}", ["instances", "missing"]),
    "instances not a list": (body("text"), ["instances", '"text"', "list"]),
    "instances null": (body(None), ["instances", "null", "list"]),
    "instances empty": (body([]), ["instances", "[]", "1 to 32"]),
    "instances with a number": (body(["a", 7]), ["instances[1]", "7", "string"]),
    "instances with a list": (body([["a"]]), ["instances[0]", "string"]),
    "instances with an object": (body([{"text": "a"}]), ["instances[0]", "string"]),
    "too many instances": (body(["a"] * 33), ["33", "1 to 32"]),
    "parameters not an object": ('{"instances":["a"],"parameters":[]}', ["parameters", "object"]),
    "parameters null": ('{"instances":["a"],"parameters":null}', ["parameters", "null"]),
    "unknown parameter": (body(max_lenght=5), ["max_lenght", "did you mean max_length"]),
    "far unknown parameter": (body(zzz=5), ["zzz", "did you mean", "top_k"]),
    "unknown key": ('{"instances":["a"],"paramters":{}}', ["paramters", "mean parameters"]),
    "twice by case": (raw_parameters('{"top_k":1,"Top_K":2}'), ["more than once"]),
    "true for an int": (body(top_k=True), ["top_k", "true", "an integer"]),
    "string for an int": (body(top_k="8"), ["top_k", '"8"', "an integer"]),
    "2.5 for an int": (body(max_length=2.5), ["max_length", "2.5", "an integer from 1 to 2048"]),
    "2.0 for an int": (body(max_length=2.0), ["max_length", "2.0", "an integer"]),
    "list for an int": (body(max_length=[8]), ["max_length", "[8]", "an integer"]),
    "null for an int": (body(max_length=None), ["max_length", "null", "an integer"]),
    "huge int": (raw_parameters('{"seed": ' + "9" * 400 + "}"), []),
    "int beyond 64 bit": (body(seed=2**63), ["seed", str(2**63)]),
    "NaN": (raw_parameters('{"temperature": NaN}'), ["not JSON"]),
    "Infinity": (raw_parameters('{"temperature": Infinity}'), ["not JSON"]),
    "1e999": (raw_parameters('{"temperature": 1e999}'), ["not JSON"]),
    "string for a float": (body(temperature="hot"), ["temperature", '"hot"', "0.01 to 5"]),
    "number for a bool": (body(do_sample=1), ["do_sample", "1", "true or false"]),
    "number for stop": (body(stop=3), ["stop", "3", "a string of 1 to 64"]),
    "empty stop": (body(stop=""), ["stop", '""']),
    "empty string in stop": (body(stop=["a", ""]), ["stop"]),
    "no stop in the list": (body(stop=[]), ["stop"]),
    "five stops": (body(stop=["a"] * 5), ["stop", "1 to 4"]),
    "long stop": (body(stop="a" * 65), ["stop", "64 characters"]),
    "negative seed": (body(seed=-1), ["seed", "-1", "from 0"]),
    "min_length negative": (body(min_length=-1), ["min_length", "-1", "0 to 2048"]),
    "min_length beyond": (body(min_length=2049), ["min_length", "2049", "0 to 2048"]),
    "max_length zero": (body(max_length=0), ["max_length", "0", "1 to 2048"]),
    "max_length beyond": (body(max_length=2049), ["max_length", "2049", "1 to 2048"]),
    "min_new_tokens beyond": (body(min_new_tokens=2049), ["min_new_tokens", "2049"]),
    "max_new_tokens zero": (body(max_new_tokens=0), ["max_new_tokens", "0", "1 to 2048"]),
    "temperature low": (body(temperature=0.005), ["temperature", "0.005", "0.01 to 5"]),
    "temperature high": (body(temperature=5.1), ["temperature", "5.1", "0.01 to 5"]),
    "temperature negative": (body(temperature=-1), ["temperature", "-1"]),
    "top_k negative": (body(top_k=-1), ["top_k", "-1", "0 (off)"]),
    "top_k beyond": (body(top_k=2049), ["top_k", "2049", "2048"]),
    "top_p zero": (body(top_p=0), ["top_p", "0", "above 0"]),
    "top_p beyond": (body(top_p=1.01), ["top_p", "1.01", "up to 1"]),
    "penalty low": (body(repetition_penalty=0.05), ["repetition_penalty", "0.05", "0.1 to 10"]),
    "penalty high": (body(repetition_penalty=11), ["repetition_penalty", "11", "0.1 to 10"]),
    "min_p beyond": (body(min_p=1.5), ["min_p", "1.5", "0 to 1"]),
    "typical_p zero": (body(typical_p=0), ["typical_p", "0", "above 0"]),
    "presence low": (body(presence_penalty=-2.1), ["presence_penalty", "-2.1", "-2 to 2"]),
    "frequency high": (body(frequency_penalty=3), ["frequency_penalty", "3", "-2 to 2"]),
    "bias not an object": (body(logit_bias=[5]), ["logit_bias", "[5]", "an object"]),
    "bias too strong": (body(logit_bias={"5": 101}), ["logit_bias", "101", "-100 to 100"]),
    "bias true": (body(logit_bias={"5": True}), ["logit_bias", "true", "a number from -100"]),
    "bias null": (body(logit_bias={"5": None}), ["logit_bias", "null", "a number from -100"]),
    "bias by word": (body(logit_bias={"the": 1}), ["logit_bias", '"the"', "0 to 2047"]),
    "bias by another spelling": (body(logit_bias={"05": 1}), ["logit_bias", '"05"']),
    "bias below": (body(logit_bias={"-1": 1}), ["logit_bias", '"-1"', "0 to 2047"]),
    "bias beyond": (body(logit_bias={"2048": 1}), ["logit_bias", '"2048"', "0 to 2047"]),
    "bias far beyond": (body(logit_bias={"9" * 99: 1}), ["logit_bias", '"999', "0 to 2047"]),
    "many biases": (body(logit_bias=dict.fromkeys(range(301), 1)), ["logit_bias", "0 to 300"]),
    "stop token not a list": (body(stop_token_ids=5), ["stop_token_ids", "5", "a list"]),
    "stop token true": (body(stop_token_ids=[True]), ["stop_token_ids", "true", "an integer"]),
    "stop token by word": (body(stop_token_ids=["a"]), ["stop_token_ids", '"a"', "an integer"]),
    "stop token below": (body(stop_token_ids=[-1]), ["stop_token_ids", "-1", "0 to 2047"]),
    "stop token beyond": (body(stop_token_ids=[5, 2048]), ["stop_token_ids", "2048", "2047"]),
    "many stop tokens": (body(stop_token_ids=[5] * 17), ["stop_token_ids", "0 to 16"]),
    "ignore_eos null": (body(ignore_eos=None), ["ignore_eos", "null", "true or false"]),
    "logprobs true": (body(logprobs=True, details=True), ["logprobs", "true", "0 to 20"]),
    "logprobs beyond": (body(logprobs=21, details=True), ["logprobs", "21", "0 to 20"]),
    "logprobs without details": (body(logprobs=3), ["logprobs", "3", "details true"]),
    "no sequences": (body(num_return_sequences=0), ["num_return_sequences", "0", "1 to 8"]),
    "nine sequences": (body(num_return_sequences=9), ["num_return_sequences", "9", "1 to 8"]),
    "min above max": (body(min_length=60, max_length=50), ["min_length", "60", "50"]),
    "min above the default": (body(min_length=1500), ["min_length", "1500", "1024", "default"]),
    "min new above max new": (
        body(min_new_tokens=9, max_new_tokens=8),
        ["min_new_tokens", "9", "8"],
    ),
    "lone surrogate": ('{"instances": ["\\ud800"]}', ["surrogate"]),
    "lone low surrogate": ('{"instances": ["a\\udc00b"]}', ["surrogate"]),
}

#: Bodies that are refused once the prompts are tokenized.
TOO_LONG: dict[str, tuple[str | bytes, list[str]]] = {
    "min_length above prompt and max_new_tokens": (
        body(min_length=500, max_new_tokens=8),
        ["min_length", "500", "max_new_tokens"],
    ),
    "min_new_tokens above max_length": (
        body(min_new_tokens=60, max_length=50),
        ["min_new_tokens", "max_length", "50"],
    ),
    "prompt as long as max_length": (
        body([" the" * 30], max_length=30),
        ["instances[0]", "30 tokens", "max_length is 30"],
    ),
    "second prompt too long": (
        body(["a", " the" * 51], max_length=50),
        ["instances[1]", "51 tokens", "max_length is 50"],
    ),
    "prompt beyond the context": (
        body([" the" * 2100], max_length=2048),
        ["2100 tokens", "2048"],
    ),
    "prompt and new tokens beyond the context": (
        body([" the" * 2000], max_new_tokens=100),
        ["2000 tokens", "2100", "2048"],
    ),
}


def check_error(error: str, named: list[str]) -> None:
    """It names the field, its value and what is allowed, is short, and gives nothing away."""
    for part in named:
        assert part in error
    assert len(error) < 500
    for leak in ("Traceback", "/site-packages", ".py", "Error(", "Exception", "pydantic", "orjson"):
        assert leak not in error
