"""A client for OpenAI-compatible servers: many chats at once, each retried with growing pauses.

    async with Endpoint(cfg.judge.endpoint, "judge.endpoint") as endpoint:      # one sentence if it is down
        reply = await endpoint.chat([{"role": "user", "content": "..."}], temperature=0.0, max_tokens=64)

What becomes of a bad answer:

- no connection, a cut one, a stall, 408, 409, 425, 429, 5xx, a body that is no completion: another attempt;
- 401, 403, 404: ValueError, for every further request would fare the same;
- any other status (400: this request is too long, say): EndpointRefused with that status, at once;
- a request out of attempts: EndpointError. Several of them with no answer in between: EndpointDown.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from nemo_tapo.config.sections import EndpointConfig
from nemo_tapo.endpoint.protocol import (
    Malformed,
    Reply,
    base_url,
    is_loopback,
    json_of,
    read_key,
    reply_of,
    retry_after,
    words_of,
)
from nemo_tapo.utils.errors import RuntimeFailure

RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx
LONGEST_BODY = 16 * 2**20  # bytes of an answer; what is longer is none, and never in memory as a whole
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever Retry-After asks
CHECK_SECONDS = 10.0  # a server that does not list its models within these is called down
CHECK_ATTEMPTS = 3
DOWN_AFTER = 3  # requests given up one after the other, none answered between
DOWN_TIMEOUTS = 3  # as many timeouts long without any answer


class EndpointError(RuntimeFailure):
    """A request got no completion. `status` is the server's, None where it sent none."""

    kept = "What was answered before is kept; the same command goes on from there."

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EndpointRefused(EndpointError):
    """The server is well and does not take this request; it would not take it the next time."""


class EndpointDown(EndpointError):
    """Nothing at all gets through any more: asking for the next item makes no sense."""


class _Again(Exception):
    """This attempt failed, another may succeed. `reason` is counted; `wait` is the server's Retry-After, seconds."""

    def __init__(self, reason: str, message: str, wait: float = 0.0, status: int | None = None) -> None:
        super().__init__(message)
        self.reason, self.wait, self.status = reason, wait, status


class Endpoint:
    """A served model. An async context manager: entering checks that the server is there.

    `retries` counts failed attempts by reason ("429", "timeout", "connection", "malformed", ...).
    """

    def __init__(self, cfg: EndpointConfig, section: str = "endpoint") -> None:
        """`section` is where `cfg` stands in the configuration; sentences name it.

        Raises ValueError for a url that is none, and for a key that the environment does not hold.
        """
        self.cfg, self.section = cfg, section
        self.url = base_url(cfg.url, section)
        self._key = read_key(cfg.key_env, section)
        self._model = cfg.model
        self.retries: Counter[str] = Counter()
        self._places = asyncio.Semaphore(cfg.concurrency)
        self._given_up = 0  # requests in a row
        self._answered = time.monotonic()  # when the server last gave a completion
        self._down: str | None = None
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=None,  # _send limits the whole attempt: httpx's limits are of single reads
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.cfg.concurrency),
            trust_env=not is_loopback(self.url),  # a proxy of the environment cannot reach this machine's own servers
        )
        try:
            await self.check()
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        await self._client.aclose()

    @property
    def model(self) -> str:
        """The name under which the server serves the model; known once the endpoint is entered."""
        assert self._model is not None, "an endpoint is entered before it is used"
        return self._model

    # ---------------------------------------------------------------------------- is it there, and what is it

    async def check(self) -> None:
        """Finds out within seconds whether the server is there, and the model's name if the config leaves it open.

        Raises EndpointError if nothing answers, ValueError if the key is refused or the model cannot be told.
        """
        names = await self._models()
        if self._model is not None:
            return
        if not names:
            raise ValueError(f"{self.url} does not list its models: set {self.section}.model.")
        if len(names) > 1:
            raise ValueError(f"{self.url} serves several models: set {self.section}.model to one of {_listed(names)}.")
        self._model = names[0]

    async def _models(self) -> list[str]:
        """Names of the served models; [] if the server has no such list. Raises EndpointError if it is down."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                response = await self._listing()
        except (_Again, TimeoutError) as error:
            why = str(error) or f"no answer in {CHECK_SECONDS:.0f} s"
            raise EndpointError(
                f"nothing usable at {self.url} ({why}): start the server, or correct {self.section}.url."
            ) from None
        if response.status_code in (401, 403):
            raise ValueError(self._refused_key(response))
        listing = json_of(response)
        data = listing.get("data") if isinstance(listing, dict) else None
        return [str(m["id"]) for m in data if isinstance(m, dict) and "id" in m] if isinstance(data, list) else []

    async def _listing(self) -> httpx.Response:
        """GET /models, a few attempts for a server that stumbles. Raises _Again."""
        for attempt in range(1, CHECK_ATTEMPTS + 1):
            try:
                response = await self._send("GET", "models")
                if response.status_code < 500:
                    return response
                raise _Again(str(response.status_code), f"it answers {self._said(response)}")
            except _Again:
                if attempt == CHECK_ATTEMPTS:
                    raise
                await asyncio.sleep(min(self.cfg.pause, 1.0))
        raise AssertionError("the last attempt returns or raises")

    # ---------------------------------------------------------------------------- chats

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        temperature: float,
        top_p: float = 1.0,
        max_tokens: int,
        seed: int | None = None,
        **body: Any,
    ) -> Reply:
        """One completion. At most `concurrency` are under way, the others wait here.

        body: further fields of the request. The config's `extra_body` overrides every field; null leaves one out.
        Raises EndpointError (see the module's head) and ValueError.
        """
        whole = {
            "model": self.model,
            "messages": list(messages),
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            **body,
            **self.cfg.extra_body,
        }
        content = {name: value for name, value in whole.items() if value is not None}
        async with self._places:
            return await self._persist(content)

    async def _persist(self, body: Mapping[str, Any]) -> Reply:
        """Attempts with growing pauses. A pause keeps its place: less is sent to a server in trouble."""
        begun = time.monotonic()
        for attempt in range(1, self.cfg.attempts + 1):
            if self._down is not None:
                raise EndpointDown(self._down)
            try:
                reply = await self._attempt(body)
            except _Again as error:
                self.retries[error.reason] += 1
                last = attempt == self.cfg.attempts
                self._break_circuit(error, last, begun)
                if last:
                    raise EndpointError(f"{self.url}: {error}, {attempt} attempts.", error.status) from None
                await asyncio.sleep(_pause(self.cfg.pause, attempt, error.wait))
            else:
                self._given_up, self._answered = 0, time.monotonic()
                return reply
        raise AssertionError("the last attempt returns or raises")

    def _break_circuit(self, error: _Again, last: bool, begun: float) -> None:
        """Raises EndpointDown once nothing has got through for long; short outages are ridden out by the pauses.

        begun: when the request was first sent; an endpoint that nobody asked anything was not silent.
        """
        self._given_up += last
        silent = time.monotonic() - max(self._answered, begun)
        stalled = error.reason == "timeout" and silent > DOWN_TIMEOUTS * self.cfg.timeout
        if self._given_up >= DOWN_AFTER or stalled:
            self._down = f"{self.url} has answered nothing for {silent:.0f} s; the last failure: {error}."
            raise EndpointDown(self._down)

    async def _attempt(self, body: Mapping[str, Any]) -> Reply:
        """One POST. Raises _Again for what another attempt may mend."""
        response = await self._send("POST", "chat/completions", body)
        status = response.status_code
        if status == 200:
            try:
                return reply_of(response)
            except Malformed as error:
                raise _Again("malformed", str(error), status=status) from None
        said = self._said(response)
        if status in RETRIED or status >= 500:
            raise _Again(str(status), f"it answers {said}", retry_after(response), status)
        if status in (401, 403):
            raise ValueError(self._refused_key(response))
        if status == 404:
            raise ValueError(await self._no_model(said))
        raise EndpointRefused(f"{self.url} refuses the request: {said}", status)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """One request, its body read to the end within `timeout`. Raises _Again for what went wrong on the way."""
        assert self._client is not None, "an endpoint is entered before it is used"
        # Written as ASCII: text of a model may hold half a surrogate pair, which UTF-8 cannot carry.
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self.cfg.timeout),
                self._client.stream(method, f"{self.url}/{path}", content=content, headers=headers) as response,
            ):
                return await _whole(response)
        except TimeoutError:
            raise _Again("timeout", f"no answer in {self.cfg.timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Again("connection", str(error) or type(error).__name__) from None

    # ---------------------------------------------------------------------------- sentences

    def _said(self, response: httpx.Response) -> str:
        """Status and the server's own words, in one line; the key blotted out should a server repeat it."""
        words = words_of(response)
        words = words.replace(self._key, "***") if self._key else words
        return f"{response.status_code} {response.reason_phrase}: {words}".rstrip(": ")

    def _refused_key(self, response: httpx.Response) -> str:
        hint = f"correct the key in {self.cfg.key_env}." if self._key else f"set {self.section}.key_env."
        return f"{self.url} wants a key that it accepts ({self._said(response)}): {hint}"

    async def _no_model(self, said: str) -> str:
        """A 404 means the model or the url: the server's list tells which."""
        names = await self._models()
        if names and self.model not in names:
            return f"{self.url} has no model {self.model!r}; it has {_listed(names)}: set {self.section}.model."
        return f"{self.url}/chat/completions does not exist there ({said}): correct {self.section}.url."


async def _whole(response: httpx.Response) -> httpx.Response:
    """The response with its body. Raises _Again for one that is too long to be an answer."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > LONGEST_BODY:
            raise _Again("malformed", f"its answer is longer than {LONGEST_BODY // 2**20} MiB")
    headers = {name: value for name, value in response.headers.items() if name in ("content-type", "retry-after")}
    return httpx.Response(response.status_code, headers=headers, content=bytes(body))


def _pause(first: float, attempt: int, wanted: float) -> float:
    """Seconds before the next attempt: doubling, spread by half so that requests do not return in step.

    The spread is of no consequence to any number, so it needs no seed.
    """
    backoff: float = first * 2 ** min(attempt - 1, 16) * random.uniform(0.75, 1.25)
    wanted = wanted if wanted > 0 else 0.0  # also nan
    return min(max(backoff, wanted), LONGEST_PAUSE)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
