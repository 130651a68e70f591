"""Build the address of an OpenAI-compatible server and parse its answers, without network access."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any

import httpx

LAST_PORT = 65535


class MalformedReply(Exception):
    """An answer with status 200 that contains no completion. The message quotes the answer in full."""


@dataclass(frozen=True)
class ChatReply:
    """One completion of a chat.

    >>> ChatReply("47+38=85", tokens=6, truncated=False).text
    '47+38=85'
    """

    text: str  # the answer; "" if the model stopped while it was still reasoning
    tokens: int  # of the completion, reasoning included; 0 if the server does not report it
    truncated: bool  # stopped by the length limit


def normalise_base_url(url: str | None, section: str) -> str:
    """Return the base URL of a server, with its path. The user may leave out /v1, or write the full path of a request.

    Raises ValueError if the URL is missing or invalid, lacks http:// or https://, or has a port that does not exist, a
    password, a query or a fragment.

    >>> normalise_base_url("http://127.0.0.1:8000/", "judge.endpoint")
    'http://127.0.0.1:8000/v1'
    >>> normalise_base_url("https://host/openai/v1/chat/completions", "judge.endpoint")
    'https://host/openai/v1'
    """
    if not url:
        raise ValueError(f"{section}.url is not set: write the server's base, as http://127.0.0.1:8000/v1.")
    text = url.strip().rstrip("/").removesuffix("/chat/completions").removesuffix("/models").rstrip("/")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{section}.url is no URL: {error}.") from None
    if parsed.userinfo:  # every message with the URL would show it
        raise ValueError(
            f"{section}.url holds a name or password: put a key into {section}.key_env's variable instead."
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{section}.url = {url!r} has no http:// or https:// and host, as http://127.0.0.1:8000/v1.")
    if parsed.port is not None and not 1 <= parsed.port <= LAST_PORT:
        raise ValueError(f"{section}.url = {url!r} has the port {parsed.port}; ports go from 1 to {LAST_PORT}.")
    if parsed.query or parsed.fragment:
        raise ValueError(f"{section}.url = {url!r} has a query or fragment; write the base alone.")
    return f"{text}/v1" if parsed.path in ("", "/") else text


def is_loopback(url: str) -> bool:
    """Tell whether the host is this machine.

    >>> is_loopback("http://127.0.0.1:8000/v1"), is_loopback("http://localhost/v1"), is_loopback("https://host/v1")
    (True, True, False)
    """
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a host name, not an address
        return host == "localhost" or host.endswith(".localhost")


def read_key(name: str | None, section: str) -> str:
    """Return the key in the environment variable `name`, or "" if `name` is None.

    Raises ValueError if the variable is not set, or if its value cannot be sent in an HTTP header.
    """
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"{section}.key_env names {name}, which is not set: export {name} with the server's key.")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the key in {name} has characters that no HTTP header can carry.")
    return key


def parse_reply(response: httpx.Response) -> ChatReply:
    """Return the completion in a response with status 200.

    Raises MalformedReply if the body contains none, or an error beside it: then the completion may be half of one.
    """
    body = parse_json(response)
    if find_error(body) is not None:
        raise MalformedReply(f"its answer holds an error ({read_error_text(response)})")
    try:
        choice = body["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise MalformedReply(f"its answer is no completion ({read_error_text(response) or 'empty'})") from None
    text, usage = join_parts(content), body.get("usage")
    if finish in ("abort", "error") or text is None:
        raise MalformedReply(f"its completion is unusable (finish_reason {finish!r})")
    tokens = read_count(usage.get("completion_tokens")) if isinstance(usage, dict) else 0
    return ChatReply(text, tokens, finish == "length")


def join_parts(content: Any) -> str | None:
    """Return the text of a message's `content`: text, null (no text), or a list of parts whose texts are joined.

    Parts that are not part of the answer (reasoning, images) are left out. None if the content has another form.

    >>> join_parts([{"type": "thinking", "thinking": "a carry"}, {"type": "text", "text": "47+38"}, "=85"])
    '47+38=85'
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict) and part.get("type", "text") not in ("text", "output_text"):
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def read_count(value: Any) -> int:
    """Return a whole number that a server wrote as an integer, as a float or as text; 0 if it is none of these.

    >>> [read_count(value) for value in (12, 12.0, "12", None, "many", 12.5, -1)]
    [12, 12, 12, 0, 0, 0, 0]
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return 0
    return int(number) if number.is_integer() and number > 0 else 0


def find_error(body: Any) -> Any:
    """Return the error in a parsed answer, at its top or in its first choice; None if there is none.

    >>> find_error({"choices": [{"message": {"content": None}, "error": {"code": 502}}]})
    {'code': 502}
    """
    if not isinstance(body, dict):
        return None
    if body.get("object") == "error":
        return body
    choices = body.get("choices")
    for holder in (body, choices[0] if isinstance(choices, list) and choices else None):
        error = holder.get("error") if isinstance(holder, dict) else None
        if error and (not isinstance(error, dict) or any(error.values())):
            return error
    return None


def read_status(response: httpx.Response) -> int:
    """Return what an answer's status is in truth: with status 200, that of an error inside, if it names one.

    Gateways that have sent 200 already report a failure behind them in this way.

    >>> read_status(httpx.Response(200, json={"choices": [], "error": {"message": "slow down", "code": "429"}}))
    429
    """
    error = find_error(parse_json(response)) if response.status_code == 200 else None
    if not isinstance(error, dict):
        return response.status_code
    named = (read_count(error.get(name)) for name in ("code", "status", "status_code"))
    return next((status for status in named if 400 <= status < 600), response.status_code)


def read_redirect(response: httpx.Response, url: str) -> str:
    """Return where an answer to a request of `url` redirects, as the base of a server.

    What may be secret (name, password, query, fragment) is left out. An answer without a usable target gives a
    description of this.

    >>> answer = httpx.Response(301, headers={"Location": "https://me:key@host/v1/models?token=key"})
    >>> read_redirect(answer, "http://host/v1/models")
    'https://host/v1'
    """
    try:
        target = httpx.URL(url).join(response.headers["location"])
        plain = target.copy_with(username="", password="", query=None, fragment=None)
    except (KeyError, ValueError, httpx.InvalidURL):
        return "an address that it does not name"
    return str(plain).rstrip("/").removesuffix("/chat/completions").removesuffix("/models")


def parse_json(response: httpx.Response) -> Any:
    """Return the body as parsed JSON, or None if it is not JSON."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):  # RecursionError: nested too deep
        return None


def read_error_text(response: httpx.Response) -> str:
    """Return the server's error message in one line, from the JSON fields that servers use, or else the body's text."""
    body = parse_json(response)
    error = find_error(body) or body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return " ".join((str(error) if error else response.text).split())


def parse_retry_after(response: httpx.Response) -> float:
    """Return the seconds to wait that the Retry-After header asks for, as a number or a date; 0 without a header.

    >>> parse_retry_after(httpx.Response(429, headers={"Retry-After": "7"}))
    7.0
    """
    value = response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
