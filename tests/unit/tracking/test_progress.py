"""Progress: what is said in a pipe, the time left, and that a terminal and Ctrl-C are left as they were."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from io import StringIO

import pytest

from nemo_tapo.tracking.progress import Progress, format_duration


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_are_rare_and_tell_stage_phase_and_time_left() -> None:
    out, clock = StringIO(), Clock()
    with Progress([("cold start", 1), ("training", 3)], stream=out, interval=5, clock=clock) as progress:
        progress.start_stage("cold start", total=2, unit="step")
        clock.now = 20
        stage = progress.start_stage("training", total=100, unit="step")
        for step in range(100):
            for phase in ("sampling 256", "updating"):
                progress.set_phase(phase)
            clock.now += 1
            stage.set_note(f"accuracy {step}")
            stage.advance()
    lines = out.getvalue().splitlines()
    assert lines[0] == "[1/2] cold start | 0/2 steps (0%): begins"
    assert "[1/2] cold start | 0/2 steps (0%): done after 20 s" in lines
    assert lines[-1] == "[2/2] training | 100/100 steps (100%) | accuracy 99: done after 1 min 40 s"
    assert len([line for line in lines if "training" in line]) <= 100 / 5 + 5
    assert sum("updating" in line for line in lines) >= 1
    assert any("| updating |" in line and line.endswith("s left") for line in lines)


def test_time_left_of_stage_and_whole() -> None:
    clock = Clock()
    progress = Progress([("a", 1), ("b", 2), ("c", 1)], stream=StringIO(), clock=clock)
    progress.start_stage("a", total=1)
    clock.now = 10
    stage = progress.start_stage("b", total=10, unit="step")
    assert stage.seconds_left() is None
    for _ in range(5):
        clock.now += 2
        stage.advance()
    assert stage.seconds_left() == pytest.approx(10)
    # a took 10 s for weight 1, b will take 20 s for weight 2: c, of weight 1, 10 s
    assert progress.seconds_left() == pytest.approx(20)
    assert progress.time_left() == "10 s left, whole run 20 s"
    clock.now += 1
    assert stage.seconds_left() == pytest.approx(9)
    clock.now += 100  # an overdue step never makes the time left negative, nor eats the steps after it
    assert stage.seconds_left() == pytest.approx(8)


def test_weight_stands_in_while_the_pace_is_unknown() -> None:
    clock = Clock()
    progress = Progress([("a", 1), ("b", 2), ("c", 1)], stream=StringIO(), clock=clock)
    progress.start_stage("a")
    assert progress.time_left() == ""
    clock.now = 10
    progress.start_stage("b")
    clock.now = 15
    assert progress.seconds_left() == pytest.approx(15 + 10)
    assert progress.time_left() == "whole run 25 s left"


def test_bursts_do_not_fool_the_time_left() -> None:
    clock = Clock()
    stage = Progress(stream=StringIO(), clock=clock).start_stage("sampling", total=1000, unit="sample")
    for _ in range(5):  # a hundred answers at once every ten seconds
        clock.now += 10
        for _ in range(100):
            clock.now += 1e-6
            stage.advance()
    assert stage.seconds_left() == pytest.approx(50, rel=0.01)


def test_resumed_stage_is_judged_by_its_own_pace() -> None:
    clock = Clock()
    stage = Progress(stream=StringIO(), clock=clock).start_stage("training", total=100, unit="step", done=90)
    clock.now = 3
    stage.advance()
    assert stage.seconds_left() == pytest.approx(27)


def test_unknown_total_and_unplanned_stage() -> None:
    out, clock = StringIO(), Clock()
    with Progress([("other", 1)], stream=out, clock=clock) as progress:
        stage = progress.start_stage("sampling", unit="response")
        clock.now = 9
        stage.advance(7)
    assert "sampling | 7 responses" in out.getvalue()
    assert "left" not in out.getvalue()


def test_heartbeat_when_nothing_is_reported() -> None:
    out = StringIO()
    with Progress(stream=out, heartbeat=0.2) as progress:
        progress.start_stage("starting the engine")
        progress.set_phase("loading")
        time.sleep(0.6)
    assert "starting the engine | loading | still at it" in out.getvalue()


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")])
def test_errors_pass_through(error: type[BaseException], word: str) -> None:
    out = StringIO()

    def work() -> None:
        with Progress(stream=out) as progress:
            progress.start_stage("training", total=3)
            raise error

    with pytest.raises(error):
        work()
    assert f"training | 0/3 (0%): {word} after" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (45, "45 s"), (270, "4 min 30 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


SCRIPT = """
import sys, time
from nemo_tapo.tracking.progress import Progress
with Progress([("training", 1)]) as progress:
    stage = progress.start_stage("training", total=1000, unit="step")
    print("to the pipe", flush=True)
    for _ in range(1000):
        progress.set_phase("updating")
        time.sleep(0.02)
        stage.advance()
"""


def test_ctrl_c_in_a_terminal_ends_it_with_the_cursor_shown() -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=child,
        env=environment,
        start_new_session=True,
    )
    os.close(child)
    seen = read_until(parent, b"updating", seconds=30)
    process.send_signal(signal.SIGINT)
    seen += read_until(parent, b"KeyboardInterrupt", seconds=30)
    assert process.wait(timeout=30) != 0
    assert process.stdout is not None
    assert process.stdout.read() == b"to the pipe\n"
    os.close(parent)
    assert b"[1/1] training" in seen
    assert b"steps (" in seen
    assert b"interrupted after" in seen
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l")  # shown, last


def read_until(descriptor: int, mark: bytes, seconds: float) -> bytes:
    """What a terminal's other end has written up to `mark`, or until it closes."""
    seen, end = b"", time.monotonic() + seconds
    while mark not in seen and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                seen += os.read(descriptor, 65536)
            except OSError:  # the other end closed
                break
    return seen
