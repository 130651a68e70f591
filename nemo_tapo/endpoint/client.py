"""Send chats to an OpenAI-compatible server: many at once, each retried with growing pauses.

    async with Endpoint(cfg.judge.endpoint, "judge.endpoint") as endpoint:      # raises one sentence if it is down
        reply = await endpoint.chat([{"role": "user", "content": "..."}], temperature=0.0, max_tokens=64)

Failed attempts are handled so:

- no connection, a broken one, a timeout, 408, 409, 425, 429, 5xx, a body without a completion: another attempt;
- 401, 403, 404: ValueError, because every further request would fail in the same way;
- a redirect: ValueError that names its target; none is followed, because the key would go along;
- any other status (for example 400, if this request is too long): EndpointRefused with that status, at once;
- 200 with an error inside: as the status that the error names; without one, as a body without a completion;
- no attempts left: EndpointError. If this happens to several requests with no answer in between: EndpointDown.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import httpx

from nemo_tapo.config.sections import EndpointConfig
from nemo_tapo.endpoint.protocol import (
    ChatReply,
    MalformedReply,
    is_loopback,
    normalise_base_url,
    parse_json,
    parse_reply,
    parse_retry_after,
    read_error_text,
    read_key,
    read_redirect,
    read_status,
)
from nemo_tapo.utils.errors import RuntimeFailure

RETRIED_STATUSES = frozenset({408, 409, 425, 429})  # and every 5xx
LONGEST_BODY = 16 * 2**20  # bytes of a body; a longer one is malformed, and is never in memory as a whole
LONGEST_QUOTE = 300  # characters of an answer that a message quotes
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever Retry-After asks
SHORTEST_SECRET = 16  # characters of a key that no reply holds by chance
CHECK_SECONDS = 10.0  # a server that does not list its models within this time counts as down
CHECK_ATTEMPTS = 3
DOWN_AFTER = 3  # failed requests in a row, with no answer in between
DOWN_TIMEOUTS = 3  # or a time without any answer, in units of the timeout


class EndpointError(RuntimeFailure):
    """A request got no completion. `status` is the server's HTTP status, or None if it sent none."""

    kept = "What was answered before is kept; the same command goes on from there."

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EndpointRefused(EndpointError):
    """The server works but refuses this request; another attempt would be refused too."""


class EndpointDown(EndpointError):
    """The server does not answer any request any more, so the caller should not send the next one."""


class _AttemptFailed(Exception):
    """This attempt failed, but another may succeed.

    `reason` is a key of `Endpoint.retries`; `wait` is the server's Retry-After in seconds.
    """

    def __init__(self, reason: str, message: str, wait: float = 0.0, status: int | None = None) -> None:
        super().__init__(message)
        self.reason, self.wait, self.status = reason, wait, status


class Endpoint:
    """A served model, as an async context manager: entering it checks that the server answers.

    `retries` counts failed attempts by reason ("429", "timeout", "connection", "malformed", ...).
    """

    def __init__(self, cfg: EndpointConfig, section: str = "endpoint") -> None:
        """Prepare the endpoint. `section` is the config key of `cfg`; error messages name it.

        Raises ValueError if the url is invalid, or the environment has no usable key.
        """
        self.cfg, self.section = cfg, section
        self.url = normalise_base_url(cfg.url, section)
        self._key = read_key(cfg.key_env, section)
        self._model = cfg.model
        self.retries: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(cfg.concurrency)
        self._failures_in_row = 0  # requests given up, without an answer in between
        self._last_answer = time.monotonic()  # time of the last completion
        self._down_message: str | None = None
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            follow_redirects=False,  # `_send` names the target instead
            timeout=None,  # `_send` limits the whole attempt; httpx limits single reads only
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.cfg.concurrency),
            trust_env=not is_loopback(self.url),  # a proxy from the environment cannot reach local servers
        )
        try:
            await self.check_server()
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
        """The server's name of the model; known once the endpoint is entered."""
        assert self._model is not None, "an endpoint is entered before it is used"
        return self._model

    # ---------------------------------------------------------------------------- check of the server

    async def check_server(self) -> None:
        """Check within seconds that the server answers, and find the model's name if the config does not set it.

        Raises EndpointError if nothing answers, ValueError if the key is refused, if the url redirects, or if the
        model's name is not clear.
        """
        names = await self._list_models()
        if self._model is not None:
            return
        if not names:
            raise ValueError(f"{self.url} does not list its models: set {self.section}.model.")
        if len(names) > 1:
            raise ValueError(
                f"{self.url} serves several models: set {self.section}.model to one of {_format_names(names)}."
            )
        self._model = names[0]

    async def _list_models(self) -> list[str]:
        """Return the names of the served models; [] if the server has no such list.

        Raises EndpointError if the server is down, ValueError if it refuses the key or redirects.
        """
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                response = await self._request_models()
        except (_AttemptFailed, TimeoutError) as error:
            why = str(error) or f"no answer in {CHECK_SECONDS:.0f} s"
            raise EndpointError(
                f"nothing usable at {self.url} ({why}): start the server, or correct {self.section}.url."
            ) from None
        if read_status(response) in (401, 403):
            raise ValueError(self._explain_refused_key(response))
        listing = parse_json(response)
        data = listing.get("data") if isinstance(listing, dict) else None
        return [str(m["id"]) for m in data if isinstance(m, dict) and "id" in m] if isinstance(data, list) else []

    async def _request_models(self) -> httpx.Response:
        """Request /models, with a few attempts. Raises _AttemptFailed if the last one fails."""
        for attempt in range(1, CHECK_ATTEMPTS + 1):
            try:
                response = await self._send("GET", "models")
                status = read_status(response)
                if status < 500:
                    return response
                raise _AttemptFailed(str(status), f"it answers {self._describe_response(response)}")
            except _AttemptFailed:
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
    ) -> ChatReply:
        """Request one completion. At most `concurrency` requests run at once; further calls wait here.

        `body` has further fields of the request. The config's `extra_body` overrides every field; null removes one.
        Raises EndpointError and ValueError, as listed at the top of this module.
        """
        fields = {
            "model": self.model,
            "messages": list(messages),
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            **body,
            **self.cfg.extra_body,
        }
        content = {name: value for name, value in fields.items() if value is not None}
        async with self._slots:
            return await self._attempt_repeatedly(content)

    async def _attempt_repeatedly(self, body: Mapping[str, Any]) -> ChatReply:
        """Attempt a request several times with growing pauses.

        The request keeps its slot during a pause, so that a server in trouble gets fewer requests.
        """
        started = time.monotonic()
        for attempt in range(1, self.cfg.attempts + 1):
            if self._down_message is not None:
                raise EndpointDown(self._down_message)
            try:
                reply = await self._attempt(body)
            except _AttemptFailed as error:
                self.retries[error.reason] += 1
                last = attempt == self.cfg.attempts
                self._break_circuit(error, last, started)
                if last:
                    raise EndpointError(f"{self.url}: {error}, {attempt} attempts.", error.status) from None
                await asyncio.sleep(_compute_pause(self.cfg.pause, attempt, error.wait))
            else:
                self._failures_in_row, self._last_answer = 0, time.monotonic()
                return reply
        raise AssertionError("the last attempt returns or raises")

    def _break_circuit(self, error: _AttemptFailed, last: bool, begun: float) -> None:
        """Raise EndpointDown if the server has answered nothing for long; the pauses bridge short outages.

        `begun` is the time of the request's first attempt: silence counts only while a request waits.
        """
        self._failures_in_row += last
        silent = time.monotonic() - max(self._last_answer, begun)
        stalled = error.reason == "timeout" and silent > DOWN_TIMEOUTS * self.cfg.timeout
        if self._failures_in_row >= DOWN_AFTER or stalled:
            self._down_message = f"{self.url} has answered nothing for {silent:.0f} s; the last failure: {error}."
            raise EndpointDown(self._down_message)

    async def _attempt(self, body: Mapping[str, Any]) -> ChatReply:
        """Make one attempt. Raises _AttemptFailed for a failure that another attempt may avoid."""
        response = await self._send("POST", "chat/completions", body)
        status = read_status(response)
        if status == 200:
            try:
                return self._hide_key(parse_reply(response))
            except MalformedReply as error:
                raise _AttemptFailed("malformed", self._quote(str(error)), status=status) from None
        answer = self._describe_response(response)
        if status in RETRIED_STATUSES or status >= 500:
            raise _AttemptFailed(str(status), f"it answers {answer}", parse_retry_after(response), status)
        if status in (401, 403):
            raise ValueError(self._explain_refused_key(response))
        if status == 404:
            raise ValueError(await self._explain_not_found(answer))
        raise EndpointRefused(f"{self.url} refuses the request: {answer}", status)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Send one HTTP request and read the whole response within `timeout`.

        Raises _AttemptFailed for a timeout or a failed connection, ValueError for a redirect.
        """
        assert self._client is not None, "an endpoint is entered before it is used"
        # json.dumps writes ASCII: a model's text may contain half a surrogate pair, which UTF-8 cannot encode.
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self.cfg.timeout),
                self._client.stream(method, f"{self.url}/{path}", content=content, headers=headers) as response,
            ):
                answer = await _read_body(response)
        except TimeoutError:
            raise _AttemptFailed("timeout", f"no answer in {self.cfg.timeout:g} s") from None
        except _AttemptFailed:
            raise
        except Exception as error:  # httpx turns most of what its transport raises into errors of its own, but not all
            raise _AttemptFailed("connection", _find_cause(error)) from None
        if 300 <= answer.status_code < 400:
            raise ValueError(self._explain_redirect(answer, path))
        return answer

    # ---------------------------------------------------------------------------- error messages

    def _hide_key(self, reply: ChatReply) -> ChatReply:
        """Return a reply with the key masked: some servers echo a request's headers, and replies are kept on disk."""
        if len(self._key) < SHORTEST_SECRET:  # "EMPTY" is what people set where no key is wanted
            return reply
        return replace(reply, text=reply.text.replace(self._key, "***"))

    def _quote(self, text: str) -> str:
        """Return an answer's text as a message may show it: the key masked, and not too long."""
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."

    def _describe_response(self, response: httpx.Response) -> str:
        """Return the status and the server's error message in one line, with the key masked if it appears there."""
        status = read_status(response)
        inside = "" if status == response.status_code else f" with an error {status} inside"
        text = self._quote(read_error_text(response))
        return f"{response.status_code} {response.reason_phrase}{inside}: {text}".rstrip(": ")

    def _explain_redirect(self, response: httpx.Response, path: str) -> str:
        """Return the error message for a redirect."""
        target = self._quote(read_redirect(response, f"{self.url}/{path}"))
        return (
            f"{self.url} redirects to {target} ({response.status_code} {response.reason_phrase}), and no redirect is "
            f"followed, so that no key goes to another server: set {self.section}.url to it if it is the one you mean."
        )

    def _explain_refused_key(self, response: httpx.Response) -> str:
        """Return the error message for a status 401 or 403."""
        hint = f"correct the key in {self.cfg.key_env}." if self._key else f"set {self.section}.key_env."
        return f"{self.url} wants a key that it accepts ({self._describe_response(response)}): {hint}"

    async def _explain_not_found(self, answer: str) -> str:
        """Return the error message for a status 404: the list of models shows whether the model or the url is wrong."""
        names = await self._list_models()
        if names and self.model not in names:
            return f"{self.url} has no model {self.model!r}; it has {_format_names(names)}: set {self.section}.model."
        return f"{self.url}/chat/completions does not exist there ({answer}): correct {self.section}.url."


def _find_cause(error: Exception) -> str:
    """Return the message of an error, or that of the first one in a group."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


async def _read_body(response: httpx.Response) -> httpx.Response:
    """Read a response's body and return the whole response. Raises _AttemptFailed if it is too long."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > LONGEST_BODY:
            raise _AttemptFailed("malformed", f"its answer is longer than {LONGEST_BODY // 2**20} MiB")
    used = ("content-type", "location", "retry-after")
    headers = {name: value for name, value in response.headers.items() if name in used}
    return httpx.Response(response.status_code, headers=headers, content=bytes(body))


def _compute_pause(first: float, attempt: int, wanted: float) -> float:
    """Return the seconds before the next attempt: `first`, doubled with each attempt, or `wanted` if that is longer.

    A random factor from 0.75 to 1.25 spreads the requests. It affects no result, so it needs no seed.
    """
    backoff: float = first * 2 ** min(attempt - 1, 16) * random.uniform(0.75, 1.25)
    wanted = wanted if wanted > 0 else 0.0  # negative and nan count as 0
    return min(max(backoff, wanted), LONGEST_PAUSE)


def _format_names(names: Sequence[str]) -> str:
    """Join at most ten names, and say how many more there are."""
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
