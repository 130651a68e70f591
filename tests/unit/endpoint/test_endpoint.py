"""The client against a real server on loopback that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar

import httpx
import pytest

from nemo_tapo.config.sections import EndpointConfig
from nemo_tapo.endpoint.client import (
    LONGEST_PAUSE,
    Endpoint,
    EndpointDown,
    EndpointError,
    EndpointRefused,
    _compute_pause,
)
from nemo_tapo.endpoint.protocol import ChatReply, normalise_base_url, parse_retry_after
from tests.helpers.endpoint_servers import (
    Answer,
    ScriptedServer,
    as_json,
    completion,
    error,
    free_port,
    listing,
    scripted,
)

T = TypeVar("T")
ASK = [{"role": "user", "content": "2+2?"}]
QUICK = {"pause": 0.01, "timeout": 5.0}


def run(job: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(job)


async def chats(server: ScriptedServer | str, n: int = 1, **settings: Any) -> tuple[list[Any], Endpoint]:
    """n chats at once; replies or exceptions."""
    url = server if isinstance(server, str) else server.url
    async with Endpoint(EndpointConfig(**{"url": url, **QUICK, **settings}), "judge.endpoint") as endpoint:
        jobs = [endpoint.chat(ASK, temperature=0.5, max_tokens=9, seed=i) for i in range(n)]
        return await asyncio.gather(*jobs, return_exceptions=True), endpoint


def one(server: ScriptedServer | str, **settings: Any) -> Any:
    replies, _ = run(chats(server, **settings))
    return replies[0]


def test_a_reply_and_what_was_asked_for() -> None:
    with scripted([completion("4", tokens=3)]) as server:
        assert one(server) == ChatReply("4", 3, False)
    assert server.requests == [
        {"model": "tiny", "messages": ASK, "temperature": 0.5, "top_p": 1.0, "max_tokens": 9, "seed": 0}
    ]


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (completion("cut of", finish="length"), ChatReply("cut of", 7, True)),
        (completion(None, reasoning_content="still thinking", finish="length"), ChatReply("", 7, True)),
        (as_json({"choices": [{"message": {"content": "4"}}]}), ChatReply("4", 0, False)),  # no usage, no finish_reason
        (as_json({"choices": [{"message": {"content": "4"}}], "usage": None}), ChatReply("4", 0, False)),
        (as_json({"choices": [{"message": {"content": "4"}}], "usage": [], "error": None}), ChatReply("4", 0, False)),
        (completion([{"type": "text", "text": "the "}, {"text": "answer"}]), ChatReply("the answer", 7, False)),
        (completion([{"type": "thinking", "thinking": "7 + 8"}, {"text": "15"}]), ChatReply("15", 7, False)),
        (completion([{"type": "reasoning", "text": "still thinking"}], finish="length"), ChatReply("", 7, True)),
        (completion(["1", "5"]), ChatReply("15", 7, False)),
        (completion({"type": "output_text", "text": "15"}), ChatReply("15", 7, False)),
        (completion([]), ChatReply("", 7, False)),
        (completion("fine", tokens=12.0), ChatReply("fine", 12, False)),
        (completion("fine", tokens="12"), ChatReply("fine", 12, False)),
        (completion("fine", tokens="many"), ChatReply("fine", 0, False)),
        (completion("fine", tokens=float("nan")), ChatReply("fine", 0, False)),
        (completion("fine", tokens=10**400), ChatReply("fine", 0, False)),
        (completion("fine", tokens=True), ChatReply("fine", 0, False)),
        (completion("fine", tokens=[12]), ChatReply("fine", 0, False)),
    ],
)  # fmt: skip
def test_replies_of_other_shapes(answer: Answer, reply: ChatReply) -> None:
    with scripted([answer]) as server:
        assert one(server) == reply


NULL: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": None}]}
HALF: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": "ha"}, "finish_reason": "stop"}]}
BAD = {
    "429": error(429, "slow down"),
    "500": error(500, "oops"),
    "503": Answer(503, b"<html>starting</html>"),
    "408": error(408, "late"),
    "malformed": Answer(200, b"<html>not JSON</html>"),
    "malformed, empty": Answer(200, b""),
    "malformed, no choices": as_json({"choices": []}),
    "malformed, error inside": as_json({"error": {"message": "upstream died"}}),
    "malformed, a list": as_json([1, 2]),
    "malformed, content": as_json({"choices": [{"message": {"content": 5}}]}),
    "malformed, parts": completion([{"type": "text", "text": None}]),
    "malformed, parts without a form": completion([7]),
    "malformed, error beside a null": as_json({**NULL, "error": {"message": "oops", "code": "rate_limited"}}),
    "malformed, error beside a text": as_json({**HALF, "error": "the stream broke"}),
    "malformed, no object but an error": as_json({"object": "error", "message": "too busy", "code": 50002}),
    "429, inside": as_json({**NULL, "error": {"message": "slow down", "code": 429}}),
    "429, inside as text": as_json({**NULL, "error": {"message": "slow down", "code": "429"}}),
    "503, inside under another name": as_json({**NULL, "error": {"status_code": 503}}),
    "502, inside the choice": as_json({"choices": [{**HALF["choices"][0], "error": {"code": 502, "message": "gone"}}]}),
    "malformed, aborted": completion("half", finish="abort"),
    "malformed, nested": Answer(200, b"[" * 200_000),
    "connection, cut": Answer(200, completion("4").body, cut=30),
    "connection, hung up": Answer(hang_up=True),
    "connection, encoding": Answer(200, b"no gzip", {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_another_attempt_may_mend_is_tried_again_and_counted(name: str) -> None:
    with scripted([BAD[name], BAD[name], completion("4")]) as server:
        (reply,), endpoint = run(chats(server))
    assert reply.text == "4" and len(server.requests) == 3
    assert endpoint.retries == {name.split(",")[0]: 2}


def inside(status: int, message: str) -> Answer:
    """An error in an answer with status 200."""
    return as_json({**NULL, "error": {"message": message, "code": status}})


def test_an_error_inside_is_treated_as_the_status_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with scripted([inside(400, "maximum context length is 1024")]) as server:
        failure = one(server)
    assert type(failure) is EndpointRefused and failure.status == 400
    assert "200 OK with an error 400 inside: maximum context length is 1024" in str(failure)
    with scripted([inside(401, "not your key: sk-secret")]) as server:
        failure = one(server, key_env="JUDGE_KEY")
    assert isinstance(failure, ValueError) and "correct the key in JUDGE_KEY" in str(failure)
    with scripted([inside(404, "no such model")], listing("tiny", "large")) as server:
        assert "has no model 'x'; it has tiny, large" in str(one(server, model="x"))
    with scripted([inside(529, "overloaded")]) as server:
        failure = one(server, attempts=2)
    assert failure.status == 529 and len(server.requests) == 2
    with scripted([completion("4")], inside(403, "no")) as server, pytest.raises(ValueError, match="wants a key"):
        one(server)
    failing = pytest.raises(EndpointError, match="with an error 500 inside: starting")
    with scripted([completion("4")], inside(500, "starting")) as server, failing:
        one(server)


def test_an_error_inside_waits_as_long_as_it_is_asked_to() -> None:
    busy = as_json({**NULL, "error": {"code": 429}}, Retry_After="0.4")
    times: list[float] = []

    def script(number: int, body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return completion("4") if number else busy

    with scripted(script) as server:
        assert one(server).text == "4"
    assert times[1] - times[0] >= 0.4  # the back-off alone would be 0.01


def test_a_body_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_tapo.endpoint.client.LONGEST_BODY", 2**20)
    endless = Answer(200, b" " * 2**20 * 8, {"Content-Length": str(2**40)})
    with scripted([endless, completion("x" * 2**19), completion("4")]) as server:
        replies, endpoint = run(chats(server, timeout=20))
    assert len(replies[0].text) == 2**19 and endpoint.retries == {"malformed": 1}


def test_a_stall_is_cut_off_and_tried_again() -> None:
    with scripted([Answer(stall=30), completion("4")]) as server:
        (reply,), endpoint = run(chats(server, timeout=0.3))
    assert reply.text == "4" and endpoint.retries == {"timeout": 1}


def test_out_of_attempts_says_how_often_and_why() -> None:
    with scripted([error(500, "the GPU fell off")]) as server:
        failure = one(server, attempts=4)
    assert type(failure) is EndpointError and failure.status == 500
    assert "500 Internal Server Error: the GPU fell off, 4 attempts" in str(failure)
    assert len(server.requests) == 4


def test_retry_after_is_waited_for() -> None:
    times: list[float] = []

    def script(number: int, body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return completion("4") if number else error(429, "wait", Retry_After="0.4")

    with scripted(script) as server:
        assert one(server).text == "4"
    assert times[1] - times[0] >= 0.4  # the back-off alone would be 0.01


def test_retry_after_is_read_as_number_or_date_and_bounded() -> None:
    def wanted(value: str) -> float:
        return parse_retry_after(httpx.Response(429, headers={"Retry-After": value}))

    assert wanted("7") == 7
    later = wanted(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
    assert 20 < later <= 30
    assert wanted("soon") == 0 and parse_retry_after(httpx.Response(429)) == 0
    for value in ("100000", "inf", "1e400"):
        assert _compute_pause(1.0, 1, wanted(value)) == LONGEST_PAUSE
    for value in ("nan", "-5"):
        assert 0 < _compute_pause(1.0, 1, wanted(value)) < 2


def test_pauses_double_and_are_bounded() -> None:
    for attempt in range(1, 6):
        middle = 2 ** (attempt - 1)
        assert all(0.75 * middle <= _compute_pause(1.0, attempt, 0) <= 1.25 * middle for _ in range(50))
    assert _compute_pause(1.0, 5000, 0) == LONGEST_PAUSE


def test_a_refused_request_is_not_repeated() -> None:
    with scripted([error(400, "This model's maximum context length is 1024 tokens.")]) as server:
        failure = one(server)
    assert type(failure) is EndpointRefused and failure.status == 400
    assert "maximum context length is 1024" in str(failure) and len(server.requests) == 1


def test_an_unknown_model_names_those_that_are_there() -> None:
    with scripted([error(404, "The model `x` does not exist.")], listing("tiny", "large")) as server:
        failure = one(server, model="x")
    assert isinstance(failure, ValueError)
    assert "has no model 'x'; it has tiny, large: set judge.endpoint.model" in str(failure)
    assert len(server.requests) == 1


def test_a_wrong_path_is_not_taken_for_a_wrong_model() -> None:
    with scripted([completion("4")]) as server:
        failure = one(server.url.replace("/v1", "/v2"), model="tiny")
    assert isinstance(failure, ValueError) and "correct judge.endpoint.url" in str(failure)


# -------------------------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_named_and_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at the check nor by a chat, with or without a key; a target's secrets are not shown."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with scripted([completion("stolen")]) as other:
        host = other.url.removeprefix("http://").removesuffix("/v1")
        for path in ("models", "chat/completions"):
            away = Answer(status, b"", {"Location": f"http://me:word@{host}/v1/{path}?token=sk-secret#part"})
            cases: list[tuple[Answer, Answer]] = [(completion("4"), away), (away, listing("tiny"))]
            for answer, models in cases:
                for named in ({}, {"model": "tiny"}):
                    with scripted([answer], models) as server:
                        try:
                            failure = one(server, key_env="JUDGE_KEY", **named)
                        except ValueError as error:
                            failure = error
                        calls = server.calls
                    assert type(failure) is ValueError and f"redirects to {other.url} ({status} " in str(failure)
                    assert "judge.endpoint.url" in str(failure)
                    assert not any(secret in str(failure) for secret in ("sk-secret", "word", "token", "part"))
                    assert calls <= 2
        assert other.calls == 0


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://HOST/v1/models", "https://HOST/v1"),
        ("//elsewhere/v1/models", "http://elsewhere/v1"),
        ("/openai/v1/models", "http://HOST/openai/v1"),
        ("/login/sk-secret", "http://HOST/login/***"),
        (None, "an address that it does not name"),
        ("http://[half", "%5bhalf"),
    ],
)
def test_targets_of_redirects(location: str | None, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with scripted([completion("4")]) as server:
        host = server.url.removeprefix("http://").removesuffix("/v1")
        headers = {} if location is None else {"Location": location.replace("HOST", host)}
        server.models = Answer(302, b"<a href=there>Found</a>", headers)
        with pytest.raises(ValueError, match="redirects to") as failure:
            one(server, key_env="JUDGE_KEY")
    assert target.replace("HOST", host) in str(failure.value) and "sk-secret" not in str(failure.value)


# -------------------------------------------------------------------------------- the key


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("JUDGE_KEY", " sk-secret\n")
    caplog.set_level("DEBUG")
    answers = [error(401, "Incorrect API key provided: sk-secret"), error(500, "sk-secret is odd")]
    answers += [as_json({"error": "sk-secret is odd"}), as_json({"choices": [], "detail": "sk-secret is odd"})]
    answers += [Answer(500, b"x" * 295 + b" sk-secret sk-secret")]  # where a message is cut short
    for answer in answers:
        with scripted([answer]) as server:
            failure = one(server, key_env="JUDGE_KEY", attempts=1)
        assert server.keys == ["Bearer sk-secret"]
        assert "sk-s" not in str(failure) and "***" in str(failure)
    assert "sk-secret" not in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_a_sentence_at_once(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k")
    with scripted([error(status, "no")]) as server:
        assert "correct the key in JUDGE_KEY" in str(one(server, key_env="JUDGE_KEY"))
        failure = one(server)
        assert isinstance(failure, ValueError) and "set judge.endpoint.key_env" in str(failure)
    assert len(server.requests) == 2
    with scripted([completion("4")], error(status, "no")) as server, pytest.raises(ValueError, match="wants a key"):
        one(server)


def test_a_key_that_is_not_set_is_told_before_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match=r"judge\.endpoint\.key_env names JUDGE_KEY, which is not set"):
        Endpoint(EndpointConfig(url="http://127.0.0.1:1", key_env="JUDGE_KEY"), "judge.endpoint")
    monkeypatch.setenv("JUDGE_KEY", "schlüssel")
    with pytest.raises(ValueError, match="no HTTP header can carry"):
        Endpoint(EndpointConfig(url="http://127.0.0.1:1", key_env="JUDGE_KEY"))


# -------------------------------------------------------------------------------- the start


@pytest.mark.parametrize(
    "url", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/", " http://h:8000/v1\n"]
)
def test_urls_as_people_write_them(url: str) -> None:
    assert normalise_base_url(url, "e") == "http://h:8000/v1"
    assert normalise_base_url("https://h/openai/v1/chat/completions", "e") == "https://h/openai/v1"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (None, "e.url is not set"),
        ("127.0.0.1:8000/v1", "no http:// or https://"),
        ("localhost:8000", "no http:// or https://"),
        ("ftp://h/v1", "no http:// or https://"),
        ("http://me:secret@h/v1", "key_env"),
        ("http://h/v1?api-version=2", "query"),
        ("http://h:port/v1", "no URL"),
        ("http://h:99999/v1", "port 99999; ports go from 1 to 65535"),
        ("http://h:0/v1", "port 0"),
    ],
)
def test_urls_that_are_none(url: str | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as failure:
        normalise_base_url(url, "e")
    assert "secret" not in str(failure.value)


def test_a_server_that_is_down_is_one_sentence_after_three_attempts() -> None:
    with pytest.raises(EndpointError, match=r"nothing usable at .*start the server, or correct judge\.endpoint\.url"):
        one(f"http://127.0.0.1:{free_port()}/v1", pause=0.01, attempts=1000)


@pytest.mark.parametrize(
    "fault",
    [
        OverflowError("getsockaddrarg: port must be 0-65535."),
        ExceptionGroup("several attempts failed", [ExceptionGroup("both", [OSError("port must be 0-65535.")])]),
    ],
)
def test_whatever_a_transport_raises_is_an_outage(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
    with pytest.raises(EndpointError, match=r"nothing usable at .*port must be 0-65535"):
        one("http://127.0.0.1:1/v1")


def test_the_only_model_is_found_and_several_are_not_guessed_among() -> None:
    with scripted([completion("4")], listing("only")) as server:
        one(server)
        assert server.requests[0]["model"] == "only"
    with scripted([completion("4")], listing("a", "b")) as server, pytest.raises(ValueError, match="one of a, b"):
        one(server)
    for models in (error(404, "no"), Answer(200, b"hello"), listing()):
        with scripted([completion("4")], models) as server:
            with pytest.raises(ValueError, match="does not list its models"):
                one(server)
            assert one(server, model="named").text == "4"


def test_loopback_is_reached_past_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with scripted([completion("4")]) as server:
        assert one(server).text == "4"


# -------------------------------------------------------------------------------- many at once


def test_no_more_requests_than_allowed_are_under_way() -> None:
    arrived = threading.Barrier(4, timeout=5)

    def script(number: int, body: dict[str, Any]) -> Answer:
        arrived.wait()  # passes only if four are there together
        return completion(str(body["seed"]))

    with scripted(script) as server:
        replies, _ = run(chats(server, n=20, concurrency=4))
    assert [r.text for r in replies] == [str(i) for i in range(20)]
    assert server.most_at_once == 4


def test_extra_body_overrides_and_null_leaves_a_field_out() -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 9, "temperature": 1, "chat_template_kwargs": {"a": False}}
    with scripted([completion("4")]) as server:
        one(server, extra_body=extra)
    body = server.requests[0]
    assert "max_tokens" not in body and body["max_completion_tokens"] == 9
    assert body["temperature"] == 1 and body["chat_template_kwargs"] == {"a": False}


def test_half_a_surrogate_pair_can_be_sent() -> None:
    async def ask(url: str) -> ChatReply:
        async with Endpoint(EndpointConfig(url=url, **QUICK)) as endpoint:
            return await endpoint.chat([{"role": "user", "content": "\ud800"}], temperature=0, max_tokens=1)

    with scripted([completion("4")]) as server:
        assert run(ask(server.url)).text == "4"


def test_requests_out_of_attempts_do_not_bring_the_others_down() -> None:
    """Every fourth fails for good: five of them, more than it takes to call a server down, but answers between."""

    def script(number: int, body: dict[str, Any]) -> Answer:
        return error(500, "always this one") if body["seed"] % 4 == 3 else completion("4")

    with scripted(script) as server:
        replies, _ = run(chats(server, n=20, concurrency=2, attempts=3))
    failures = [r for r in replies if isinstance(r, Exception)]
    assert [type(failure) for failure in failures] == [EndpointError] * 5


def test_a_server_that_dies_stops_everything_after_a_few_requests() -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        return completion("4") if number < 10 else Answer(hang_up=True)

    with scripted(script) as server:
        replies, _ = run(chats(server, n=1000, concurrency=4, attempts=3))
    assert sum(isinstance(r, ChatReply) for r in replies) == 10
    assert all(isinstance(r, EndpointError) for r in replies if not isinstance(r, ChatReply))
    assert sum(isinstance(r, EndpointDown) for r in replies) >= 980
    assert len(server.requests) < 40  # not 990 times three
    assert "has answered nothing for" in str(replies[-1])


def test_a_server_that_goes_silent_is_given_up_before_every_request_has_timed_out() -> None:
    with scripted([Answer(stall=30)]) as server:
        replies, _ = run(chats(server, n=50, concurrency=2, timeout=0.3, attempts=1000))
    assert all(isinstance(r, EndpointDown) for r in replies)
    assert len(server.requests) < 20


def test_a_short_outage_is_ridden_out() -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        return Answer(hang_up=True) if number < 20 else completion("4")

    with scripted(script) as server:
        replies, _ = run(chats(server, n=8, concurrency=8, attempts=6))
    assert all(isinstance(r, ChatReply) for r in replies)


def test_time_without_requests_and_a_long_wait_asked_for_are_no_silence() -> None:
    """Both are longer than three timeouts of 0.3 s; neither is a server that does not answer."""

    async def go(url: str) -> ChatReply:
        async with Endpoint(EndpointConfig(url=url, timeout=0.3, pause=0.01)) as endpoint:
            await asyncio.sleep(1.0)
            return await endpoint.chat(ASK, temperature=0, max_tokens=1)

    with scripted([error(429, "busy", Retry_After="0.5")] * 2 + [completion("4")]) as server:
        assert run(go(server.url)).text == "4"
