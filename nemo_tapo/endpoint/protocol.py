"""How an OpenAI-compatible server is addressed, and what its answers say. Nothing here waits."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any

import httpx


class Malformed(Exception):
    """An answer with status 200 that holds no completion."""


@dataclass(frozen=True)
class Reply:
    """One completion."""

    text: str  # of the answer; "" where the model stopped within its reasoning
    tokens: int  # of the completion, reasoning included; 0 if the server does not say
    truncated: bool  # stopped by the length limit


def base_url(url: str | None, section: str) -> str:
    """The base of a server as one may write it: with or without /v1, with a / or the whole path behind it.

    Raises ValueError for no url, one without http:// or https://, and one with a password in it.
    """
    if not url:
        raise ValueError(f"{section}.url is not set: write the server's base, as http://127.0.0.1:8000/v1.")
    text = url.strip().rstrip("/").removesuffix("/chat/completions").removesuffix("/models").rstrip("/")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{section}.url is no URL: {error}.") from None
    if parsed.userinfo:  # it would stand in every message
        raise ValueError(
            f"{section}.url holds a name or password: put a key into {section}.key_env's variable instead."
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{section}.url = {url!r} has no http:// or https:// and host, as http://127.0.0.1:8000/v1.")
    if parsed.query or parsed.fragment:
        raise ValueError(f"{section}.url = {url!r} has a query or fragment; write the base alone.")
    return f"{text}/v1" if parsed.path in ("", "/") else text


def is_loopback(url: str) -> bool:
    """Whether the host is this machine."""
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")


def read_key(name: str | None, section: str) -> str:
    """The key from the environment, "" where none is wanted."""
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"{section}.key_env names {name}, which is not set: export {name} with the server's key.")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the key in {name} has characters that no HTTP header can carry.")
    return key


def reply_of(response: httpx.Response) -> Reply:
    """The completion of a 200. Raises Malformed for a body that holds none."""
    body = json_of(response)
    try:
        choice = body["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        tokens = (body.get("usage") or {}).get("completion_tokens") or 0
    except (AttributeError, IndexError, KeyError, TypeError):
        raise Malformed(f"its answer is no completion ({words_of(response)[:200] or 'empty'})") from None
    if finish in ("abort", "error") or not isinstance(text, str | None) or not isinstance(tokens, int):
        raise Malformed(f"its completion is unusable (finish_reason {finish!r})")
    return Reply(text or "", tokens, finish == "length")


def json_of(response: httpx.Response) -> Any:
    """The body as JSON; None if it is not. RecursionError: json gives up on deep nesting."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def words_of(response: httpx.Response) -> str:
    """The server's words in one line, in the shapes that servers use; or the body itself."""
    body = json_of(response)
    found = body if isinstance(body, dict) else {}
    error = found.get("error", found)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return " ".join((str(error) if error else response.text).split())[:300]


def retry_after(response: httpx.Response) -> float:
    """Seconds that the header asks to wait, given as a number or a date; 0 without one."""
    value = response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
