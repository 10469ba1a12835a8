"""A service's V1 endpoint, as a benchmark's target."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx

from gptj_predictor.bench.errors import BenchmarkError, CellError, DoesNotFitError, PlanError
from gptj_predictor.bench.results import Round
from gptj_predictor.bench.targets import Sampling, Target
from gptj_predictor.bench.text import Prompt
from gptj_predictor.common.key_file import KeyFileError, read_keys
from gptj_predictor.tokenizer import Tokenizer

#: New tokens from which on a text must have at least half as many tokens of its own.
TELLING_TOKENS = 16

#: What a server says of a sequence that its KV cache can never hold.
NO_ROOM = "do not fit the KV cache"

CONNECT_SECONDS = 10

#: What an event of a stream begins with.
DATA = "data: "


class RefusedError(BenchmarkError):
    """The service answers a request with 400."""


@dataclass(frozen=True)
class Credentials:
    """What a service must be shown, and must show.

    Attributes:
        api_key: Sent with every request.
        authorities: Who may have signed the service's certificate; ``None`` for those that
            everyone trusts.
    """

    api_key: str | None = None
    authorities: ssl.SSLContext | None = None

    @classmethod
    def read(cls, api_key_file: Path | None, ca_file: Path | None) -> Credentials:
        """From files; see :class:`BenchmarkSettings`.

        Raises:
            PlanError: a file cannot be read, or has not what it should.
        """
        try:
            key = None if api_key_file is None else read_keys(api_key_file)[0]
        except KeyFileError as error:
            raise PlanError(f"--api_key_file {api_key_file}: {error}") from error
        try:
            context = None if ca_file is None else ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # ssl's errors are such
            raise PlanError(f"--ca_file {ca_file}: {error.strerror or error}") from error
        return cls(key, context)


class HttpTarget(Target):
    """A service's V1 endpoint."""

    def __init__(
        self,
        url: str,
        tokenizer: Tokenizer,
        sampling: Sampling,
        credentials: Credentials | None = None,
        *,
        stream: bool = False,
    ) -> None:
        """Find the endpoint.

        Args:
            url: Of the service, or of ``/v1/models/NAME``, with or without ``:predict``.
            tokenizer: The one that the service has.
            sampling: Sent with every request.
            credentials: For a service that wants API keys or has a certificate of its own.
            stream: Whether the answers of :meth:`run` are streamed, so that the first token can be
                timed.

        Raises:
            BenchmarkError: nobody answers, or there is not one model that is ready.
        """
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._stream = stream
        credentials = credentials or Credentials()
        key = credentials.api_key
        self._client = httpx.Client(
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            verify=True if credentials.authorities is None else credentials.authorities,
        )
        self._model = self._find_model(url.rstrip("/"))

    def _find_model(self, url: str) -> str:
        if "/v1/models/" in url:
            model = url.removesuffix(":predict")
        else:
            names = self._send("GET", f"{url}/v1/models").json().get("models", [])
            if len(names) != 1:
                raise BenchmarkError(
                    f"{url} serves {', '.join(names) or 'no model'}; give --url a model's own "
                    f"address, {url}/v1/models/NAME"
                )
            model = f"{url}/v1/models/{names[0]}"
        self._send("GET", model)
        return model

    def check_tokens(self, prompts: Sequence[Prompt]) -> None:
        """Make sure that the service counts as many tokens in the prompts as we do.

        ``max_length`` counts the prompt, and the service refuses a request without room for a new
        token. With ``max_length`` equal to the prompt's tokens it must refuse; with one more it
        must not.

        Raises:
            BenchmarkError: it counts differently, so it has the tokenizer of another model.
        """
        tokens = len(prompts[0].ids)
        parameters = self._parameters(0) | {"min_length": 0}
        try:
            self._predict(prompts, parameters | {"max_length": tokens + 1})
        except RefusedError as error:
            raise BenchmarkError(
                f"the service refuses {len(prompts)} prompts of {tokens} tokens: {error}"
            ) from error
        for prompt in prompts:
            try:
                self._predict([prompt], parameters | {"max_length": tokens})
            except RefusedError:
                continue
            raise BenchmarkError(
                f"the service counts fewer than {tokens} tokens in a prompt that has {tokens} by "
                "the tokenizer here; --model must name the snapshot that it serves"
            )

    def run(self, prompts: Sequence[Prompt], new_tokens: int, seed: int) -> Round:
        """See :meth:`Target.run`."""
        lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        ask = self._predict_streamed if self._stream else self._predict
        answer = ask(prompts, self._parameters(seed) | lengths)
        counted = sum(len(self._tokenizer.encode(text)) for text in answer.texts)
        # A text can be tokenized into other tokens than were sampled, but not into half as many.
        if new_tokens >= TELLING_TOKENS and counted < len(prompts) * new_tokens / 2:
            raise BenchmarkError(
                f"{len(prompts)} x {new_tokens} new tokens were asked for, and the texts have "
                f"{counted}"
            )
        return Round(
            seconds=answer.seconds,
            first_token_seconds=answer.first_seconds,
            counted_tokens=counted,
        )

    def _parameters(self, seed: int) -> dict[str, Any]:
        """Every parameter but the lengths, so that the service's defaults do not matter."""
        return {
            "temperature": self._sampling.temperature,
            "top_k": self._sampling.top_k,
            "top_p": self._sampling.top_p,
            "repetition_penalty": self._sampling.repetition_penalty,
            "do_sample": True,
            "num_return_sequences": 1,
            "stop": None,
            "return_full_text": False,
            "seed": seed,
        }

    def _predict(self, prompts: Sequence[Prompt], parameters: dict[str, Any]) -> _Answer:
        """Send one request whose answer comes at once."""
        started = time.perf_counter()
        response = self._send("POST", f"{self._model}:predict", json=_body(prompts, parameters))
        seconds = time.perf_counter() - started
        return _Answer(_texts(response.json()), seconds, seconds)

    def _predict_streamed(self, prompts: Sequence[Prompt], parameters: dict[str, Any]) -> _Answer:
        """Send one request whose answer is streamed."""
        url = f"{self._model}:predict"
        body = _body(prompts, parameters) | {"stream": True}
        # A text may have no piece: its tokens may be the parts of one character.
        waiting, first, last = set(range(len(prompts))), None, ""
        started = time.perf_counter()
        try:
            with self._client.stream("POST", url, json=body) as response:
                if not response.is_success:
                    response.read()
                    self._refuse(response, "POST", url)
                for line in filter(None, response.iter_lines()):
                    if line.startswith(DATA):
                        last = line.removeprefix(DATA)
                    if first is None:
                        waiting.discard(json.loads(last or "{}").get("instance"))
                        first = None if waiting else time.perf_counter() - started
        except httpx.HTTPError as error:
            raise BenchmarkError(f"{url}: {error or type(error).__name__}") from error
        seconds = time.perf_counter() - started
        answer = json.loads(last or "{}")
        if "predictions" not in answer:
            raise CellError(f"the stream ended with: {' '.join(last.split())[:300]}")
        return _Answer(_texts(answer), seconds, seconds if first is None else first)

    def _send(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            response = self._client.request(method, url, **more)
        except httpx.HTTPError as error:
            raise BenchmarkError(f"{url}: {error or type(error).__name__}") from error
        if not response.is_success:
            self._refuse(response, method, url)
        return response

    def _refuse(self, response: httpx.Response, method: str, url: str) -> NoReturn:
        text = " ".join(response.text.split())[:300]
        if response.status_code == httpx.codes.BAD_REQUEST and NO_ROOM in text:
            raise DoesNotFitError(text)
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise RefusedError(text)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE and method == "POST":
            raise CellError(f"503: {text}")
        raise BenchmarkError(f"{url} answers {response.status_code}: {text}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@dataclass(frozen=True)
class _Answer:
    """Texts in the order of their prompts; seconds until all had begun, and until all was there."""

    texts: list[str]
    seconds: float
    first_seconds: float


def _body(prompts: Sequence[Prompt], parameters: dict[str, Any]) -> dict[str, Any]:
    return {"instances": [prompt.text for prompt in prompts], "parameters": parameters}


def _texts(answer: dict[str, Any]) -> list[str]:
    predictions = answer["predictions"]
    rows = predictions if isinstance(predictions[0], list) else [predictions]
    return [row[0]["generated_text"] for row in rows]
