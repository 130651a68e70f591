"""Programs that a model might write against its own test, its grader, or the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_tapo.config.sections import CodeRewardConfig, GradingConfig
from nemo_tapo.grading.sandbox import DISK, Isolation, Limits, SandboxedProcess
from nemo_tapo.grading.system_call_filter import REFUSED, make_filter
from nemo_tapo.tasks.rewarded_task import make_tester
from nemo_tapo.types import Query
from tests.helpers.programs import FAULT, NEEDS_BUBBLEWRAP, block, grade

SECRET = "hf_a_key_that_nobody_may_read"
BOTH = pytest.mark.parametrize(
    "isolation", [pytest.param("bubblewrap", marks=NEEDS_BUBBLEWRAP), pytest.param("limits")]
)

# Each line of output names something that went through. Nothing here does harm where a protection fails: signal 0 only
# asks whether a signal may be sent, and what is forked ends at once.
PROCESSES = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
main = os.getpid()
def went(name, call):
    try: result = call()
    except OSError: return
    if os.getpid() != main: os._exit(0)  # a child: the parent tells
    if result != -1: print(name)
went("fork", os.fork)
went("forkpty", os.forkpty)
went("posix_spawn", lambda: os.posix_spawn("/usr/bin/true", ["true"], {}))
went("subprocess", lambda: subprocess.run(["/usr/bin/true"]))
went("clone3", lambda: libc.syscall(435, 0, 0))
went("x32 fork", lambda: libc.syscall(0x40000000 + 57))
went("signal the parent", lambda: os.kill(os.getppid(), 0))
went("signal pid 1", lambda: os.kill(1, 0))
went("signal everyone", lambda: os.kill(-1, 0))
went("limit another", lambda: libc.prlimit(os.getppid() or 1, 0, None, None))
went("outlive the parent", lambda: libc.prctl(1, 0, 0, 0, 0))
went("new namespaces", lambda: libc.unshare(0x10000000))
went("memory without a limit", lambda: libc.memfd_create(b"x", 0))
went("shared memory", lambda: libc.shmget(0, 1 << 20, 0o1600))
import socket
went("internet", socket.socket)
went("unix socket", lambda: socket.socket(socket.AF_UNIX))
went("netlink", lambda: socket.socket(socket.AF_NETLINK))
went("trace", lambda: libc.ptrace(0, 0, 0, 0))
print("tried")
"""
FILES = """
import os
for name in os.environ: print(name) if name not in "PATH HOME LANG PYTHONHASHSEED PWD LC_CTYPE".split() else None
for path in (SEEN):
    try: os.listdir(path) if os.path.isdir(path) else open(path)
    except OSError: continue
    print("read", path)
for path in ("/", "/usr/lib", "/dev", os.path.dirname(os.__file__)):
    try: open(os.path.join(path, "left-behind"), "w")
    except OSError: continue
    print("wrote in", path)
for path in ("/answer.py", "/host.py", os.__file__, "/dev/null/x"):
    try: open(path, "r+")
    except OSError: continue
    print("changed", path)
for number in range(3, 1024):
    try: os.write(number, b"x")
    except OSError: continue
    print("wrote to descriptor", number)
open("/tmp/left-behind", "w").write("inside")
written = 0
try:
    for number in range(100):
        with open(f"/tmp/{number}", "wb") as file:
            for _ in range(64): written += file.write(bytes(1 << 16)); file.flush()
except OSError: pass
if written > LARGEST: print("wrote", written)
print("tried")
"""

FORGERIES = {
    "verdicts on every descriptor": """
import os
for number in range(64):
    for line in (b'{"value": null}', b'{"results": ["", ""]}', b'{"id": 0, "verdict": "right"}'):
        try: os.write(number, line + b"\\n")
        except OSError: pass
""",
    "a verdict at the end": """
import atexit, os
class Late:
    def __del__(self): os.write(4, b'{"results": ["", ""]}\\n')
late = Late()
atexit.register(os.write, 4, b'{"results": ["", ""]}\\n')
def f(x): return None
""",
    "an early end without a word": "import os; os._exit(0)",
    "a number that equals everything": """
class Any(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def f(x): return Any(7)
""",
    "an object that equals everything": """
class Any:
    def __eq__(self, other): return True
def f(x): return Any()
""",
    "asserts that do not fail": """
import builtins
builtins.AssertionError = type("Passed", (BaseException,), {})
builtins.isinstance = lambda *a: True
def f(x): raise AssertionError
""",
    "another encoder of values": """
import sys
sys._getframe(2).f_globals["encode"] = lambda value: {"results": ["", ""]}
def f(x): return 0
""",
    "a reply of its own": """
import json
json.dumps = lambda reply: '{"results": ["", ""]}'
def f(x): return 0
""",
    "other constants": """
import ctypes
def f(x):
    ctypes.memset(id(7) + 24, 8, 1)
    return 8
""",
}
SLEEP = "import time; print(1, flush=True); time.sleep(600)"
AHEAD = """
import os
def f(x):
    for number in range(64):
        try: os.write(number, b'{"value": 4}\\n' * 9)
        except OSError: pass
    return x * x
"""


def run(program: str, isolation: Isolation = "bubblewrap", limits: Limits | None = None) -> str:
    """What a program prints."""
    with SandboxedProcess("program", program, limits or Limits(), isolation) as process:
        return process.run(b"").decode()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)


@BOTH
def test_no_process_no_signal_no_network(isolation: Isolation) -> None:
    assert run(PROCESSES, isolation) == "tried\n"


@NEEDS_BUBBLEWRAP
def test_no_files_but_the_interpreters(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    there = ["/etc/passwd", "/etc/shadow", "/proc", "/sys", "/home", __file__, str(tmp_path / "secret"), os.getcwd()]
    program = FILES.replace("SEEN", repr(there)).replace("LARGEST", str(DISK))
    assert run(program) == "tried\n"
    assert not Path("/tmp/left-behind").exists()


@BOTH
def test_no_key_in_the_environment(isolation: Isolation) -> None:
    own = "open('/proc/self/environ').read() if os.path.exists('/proc') else ''"
    assert SECRET not in run(f"import os; print(dict(os.environ), {own})", isolation)


@BOTH
@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("x = bytearray(10**11)", "failed"),
        ("while True: print('x' * 100_000)", "too_much_output"),
        ("import os\nif os.fork() == 0: os._exit(0)", "failed"),
        ("import ctypes; ctypes.string_at(0)", "failed"),
    ],
)  # fmt: skip
def test_what_a_program_may_use_is_limited(program: str, outcome: str, isolation: Isolation) -> None:
    found = grade([{"input": "", "output": "5"}], program, isolation=isolation)
    assert (found.reward, found.outcome) == (0.0, outcome)


@NEEDS_BUBBLEWRAP
def test_a_program_that_does_not_end_is_ended() -> None:
    assert grade([{"input": "", "output": "5"}], "while True: pass", seconds=1).outcome == "timeout"


@NEEDS_BUBBLEWRAP
@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_verdict_cannot_be_forged(program: str) -> None:
    """The right value is 49, known to the tests alone."""
    asserts = grade(["assert f(7) == 49", "assert [f(7)] == [49]"], program, share=True)
    calls = grade({"fn_name": "f", "inputs": [[7]], "outputs": [49]}, program)
    assert asserts.reward == calls.reward == 0.0 and asserts.graded and calls.graded


@NEEDS_BUBBLEWRAP
def test_a_reply_of_one_test_is_not_that_of_another() -> None:
    """A program that answers ahead of time gives wrong values, not right verdicts."""
    assert grade(["assert f(2) == 4", "assert f(3) == 9"], AHEAD).reward == 0.0
    assert grade(["assert f(2) == 4", "assert f(3) == 9"], "def f(x): return x * x").reward == 1.0


@NEEDS_BUBBLEWRAP
def test_a_grader_in_the_pool_is_out_of_reach() -> None:
    """An answer that writes to every descriptor and signals all it can see is wrong, and the next one is graded."""
    hostile = "import os\nfor n in range(1024):\n try: os.write(n, b'x' * 100)\n except OSError: pass\nos.kill(-1, 0)"
    tester = make_tester(CodeRewardConfig(), GradingConfig(workers=1), "tests")
    query = Query("7", "?", '[{"input": "", "output": "5"}]')

    async def grade_both() -> list[str]:
        return [(await tester.grade(0, query, block(program))).outcome for program in (hostile, "print(5)")]

    try:
        assert asyncio.run(grade_both()) == ["failed", "right"]
        assert tester._pool.deaths == 0
    finally:
        tester.close()


@pytest.fixture
def sleeper() -> Iterator[tuple[int, int]]:
    """A process that has started a program which sleeps, and the id of what runs it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            isolation: Isolation = "limits" if FAULT else "bubblewrap"
            process = SandboxedProcess("program", SLEEP, Limits(), isolation)
            process.ask(b"\n")
            os.write(write, str(process._process.pid).encode())
            signal.pause()
        finally:
            os._exit(0)
    yield pid, int(os.read(read, 20))
    os.close(read)
    os.close(write)


def test_what_a_killed_grader_has_started_ends_with_it(sleeper: tuple[int, int]) -> None:
    grader, program = sleeper
    os.kill(grader, signal.SIGKILL)
    os.waitpid(grader, 0)
    for _ in range(500):
        if not Path(f"/proc/{program}/cmdline").exists() or not Path(f"/proc/{program}/cmdline").read_bytes():
            return
        time.sleep(0.01)
    pytest.fail("the program still runs")


@NEEDS_BUBBLEWRAP
def test_a_server_of_this_machine_is_not_reached_without_the_filter_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """The namespaces hold by themselves: a filter that lets everything pass, and no connection, no process in sight."""
    allow = (0x06).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")
    monkeypatch.setattr("nemo_tapo.grading.sandbox.make_filter", lambda _: allow)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = run(
            f"import os, socket\n"
            f"try: socket.create_connection(('127.0.0.1', {port}), 1); print('connected')\n"
            f"except OSError as error: print(error.errno)\n"
            f"for pid in range(3, 100):\n"
            f"  try: os.kill(pid, 0) if pid != os.getpid() else None\n"
            f"  except OSError: continue\n"
            f"  print(pid) if pid != os.getpid() else None\n"
        )
    assert said in ("101\n", "111\n")  # network is unreachable; nobody listens


def test_the_filter_has_the_numbers_of_linux() -> None:
    """As the kernel's own headers have them, where they are installed."""
    headers = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")]
    for column, header in enumerate(headers):
        if not header.exists():
            continue
        lines = header.read_text().splitlines()
        defined = dict(line.split()[1:3] for line in lines if line.startswith("#define __NR_"))
        for name, numbers in REFUSED.items():
            assert numbers[column] is None or defined.get(f"__NR_{name}", str(numbers[column])) == str(numbers[column])
    assert make_filter("x86_64") != make_filter("aarch64")
