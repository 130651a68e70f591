"""OpenAI-compatible servers on loopback: a scripted one for every bad answer, and vLLM's own on the tiny model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the scripted server does with one request."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    stall: float = 0.0  # seconds of silence before anything is sent; ends early when the server stops
    cut: int | None = None  # close the connection after so many bytes of the body, although more were promised
    hang_up: bool = False  # close the connection without a word


def completion(text: Any, tokens: Any = 7, finish: str = "stop", **message: Any) -> Answer:
    """A chat completion; well-formed if `text` is a text or None and `tokens` a number."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return as_json({"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": tokens}})


def as_json(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(body).encode(), headers)


def error(status: int, message: str, **headers: str) -> Answer:
    """An error as vLLM words it."""
    return as_json({"error": {"message": message, "type": "Error", "code": status}}, status, **headers)


Script = Callable[[int, Body], Answer]  # (number of the chat request, from 0; its body) -> what to do


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 makes the kernel refuse some of many connections that come at once


class ScriptedServer:
    """Answers chats by a script and lists `models`. `requests` holds every chat's body, in order of arrival.

    `calls` counts every request, the listing and wrong paths among them.
    """

    def __init__(self, script: Script, models: Answer) -> None:
        self.script, self.models = script, models
        self.requests: list[Body] = []
        self.keys: list[str | None] = []
        self.calls = 0
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def chat(self, body: Body, key: str | None) -> Answer:
        """The script's answer; counts how many requests are under way."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.keys.append(key)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            answer = self.script(number, body)
            self._closing.wait(answer.stall)
            return answer
        finally:
            with self._lock:
                self._now -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.calls += 1
                self.send(server.models if self.path == "/v1/models" else error(404, "Not Found"))

            def do_POST(self) -> None:
                server.calls += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                wrong = self.path != "/v1/chat/completions"
                self.send(error(404, "Not Found") if wrong else server.chat(body, self.headers["Authorization"]))

            def send(self, answer: Answer) -> None:
                self.close_connection = answer.hang_up or answer.cut is not None
                if answer.hang_up:
                    return
                try:
                    self.send_response(answer.status)
                    for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.end_headers()
                    self.wfile.write(answer.body[: answer.cut])
                except ConnectionError:  # the client gave up on a stall, which is what such a test wants
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def listing(*names: str) -> Answer:
    """The answer to GET /v1/models."""
    return as_json({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


@contextmanager
def scripted(script: Script | list[Answer], models: Answer | None = None) -> Iterator[ScriptedServer]:
    """A scripted server for a `with`. A list is answered in its order, its last entry over and over."""
    if isinstance(script, list):
        answers = script
        script = lambda number, body: answers[min(number, len(answers) - 1)]  # noqa: E731
    server = ScriptedServer(script, models or listing("tiny"))
    try:
        yield server
    finally:
        server.close()


def free_port() -> int:
    """A port of loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def vllm_server(model: Path, log: Path, *options: str, name: str = "tiny", seconds: float = 240) -> Iterator[str]:
    """vLLM's own OpenAI server on this machine's CPU; gives its url (".../v1"). `log`: the file of what it prints.

    One process (the engine core is not put behind a socket), so that ending it ends everything.
    """
    port = free_port()
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, "--dtype", "float32"]
    # A seeded generator cannot be set back on a CPU, which chunked prefill would want: whole prompts only.
    command += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-seqs", "64", "--block-size", "32"]
    command += ["--max-num-batched-tokens", "8192", "--generation-config", "vllm", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/v1", process, log, seconds)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        stop_group(process)


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Returns once the server lists its models; raises with its last words if it does not get there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/models", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise RuntimeError(f"vLLM's server did not start (exit code {process.poll()}):\n{last}")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and what it started: they are the group that `start_new_session` made."""
    for sign, grace in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
