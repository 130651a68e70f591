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


class MalformedReply(Exception):
    """An answer with status 200 that contains no completion."""


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

    Raises ValueError if the URL is missing or invalid, lacks http:// or https://, or has a password, query or fragment.

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
    """Return the completion in a response with status 200. Raises MalformedReply if the body contains none."""
    body = parse_json(response)
    try:
        choice = body["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        tokens = (body.get("usage") or {}).get("completion_tokens") or 0
    except (AttributeError, IndexError, KeyError, TypeError):
        raise MalformedReply(f"its answer is no completion ({read_error_text(response)[:200] or 'empty'})") from None
    if finish in ("abort", "error") or not isinstance(text, str | None) or not isinstance(tokens, int):
        raise MalformedReply(f"its completion is unusable (finish_reason {finish!r})")
    return ChatReply(text or "", tokens, finish == "length")


def parse_json(response: httpx.Response) -> Any:
    """Return the body as parsed JSON, or None if it is not JSON."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):  # RecursionError: nested too deep
        return None


def read_error_text(response: httpx.Response) -> str:
    """Return the server's error message in one line, from the JSON fields that servers use, or else the body's text."""
    body = parse_json(response)
    fields = body if isinstance(body, dict) else {}
    error = fields.get("error", fields)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return " ".join((str(error) if error else response.text).split())[:300]


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
