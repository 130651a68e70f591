"""Start a program that a model wrote where it can do no harm, and talk to it.

Bubblewrap (`bwrap`) gives it namespaces of its own: no network, no other process, of the files only the interpreter's,
to be read, an empty environment, and 16 MiB to write to. A seccomp filter (system_call_filter.py) keeps it to one
process, and limits of the kernel bound its memory, its processor time and its files. Where bubblewrap cannot be had,
`find_isolation_fault` says why; isolation "limits" does without the namespaces.

Processes are started from a grader, which has one thread; when that is killed, whatever it started dies with it.
"""

from __future__ import annotations

import base64
import os
import platform
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from nemo_tapo.grading import code_host
from nemo_tapo.grading.system_call_filter import make_filter
from nemo_tapo.utils.errors import get_first_line

Isolation = Literal["bubblewrap", "limits"]
DISK = 16 << 20  # bytes that it may write in all (limits: a file)
OPEN_FILES = 64
STACK = 64 << 20  # bytes: deep recursion is no fault of an answer
WALL_FACTOR = 4  # seconds of wall-clock time for one of processor time: the machine may be busy
KILLED = (-9, 128 + 9)  # exit codes after the kernel's limit of processor time; nothing else there sends SIGKILL
INSTALL = "Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap"


@dataclass(frozen=True)
class Limits:
    """What one process may use."""

    seconds: int = 4  # of processor time
    memory: int = 512 << 20  # bytes of address space
    output: int = 1 << 20  # bytes that are read from it


class Stopped(Exception):
    """A process ended, or was ended, before it had answered: `reason` is failed, timeout or too_much_output."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SandboxedProcess:
    """A bare Python that runs code_host.py on a program, or on tests; a context manager that ends it.

    Raises OSError if it cannot be started.
    """

    def __init__(self, role: str, program: str | None, limits: Limits, isolation: Isolation) -> None:
        self.limits = limits
        self._stack = ExitStack()
        self._until = time.monotonic() + WALL_FACTOR * limits.seconds
        self._read = bytearray()
        self._started, started = os.pipe()
        self._stack.callback(os.close, self._started)
        try:
            source = None if program is None else program.encode("utf-8", "replace")
            start = self._start_in_bubblewrap if isolation == "bubblewrap" else self._start_with_limits
            self._process = start(role, source, started)
        except BaseException:
            self._stack.close()
            raise
        finally:
            os.close(started)

    def __enter__(self) -> SandboxedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(self, text: bytes) -> bytes:
        """Give it its whole standard input; return its standard output once it has ended well. Raises Stopped."""
        self._pump(text, close=True)
        self._check_exit()
        return bytes(self._read)

    def ask(self, line: bytes) -> bytes:
        """Send a line and return the line that comes back. Raises Stopped, also if it ends without one."""
        self._pump(line, line=True)
        found, newline, self._read = self._read.partition(b"\n")
        if not newline:
            self._check_exit()
            raise Stopped("failed", "it ended before it had answered")
        return bytes(found)

    def end(self) -> None:
        """End the process and remove what it was given. May be called twice."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        self._process.wait()
        self._stack.close()

    # ------------------------------------------------------------------------------ to start it

    def _start_in_bubblewrap(self, role: str, program: bytes | None, started: int) -> subprocess.Popen[bytes]:
        steps = make_filter(platform.machine())
        assert steps is not None, "find_isolation_fault was asked"
        fds = [started, self._hold(steps)]
        arguments = ["--seccomp", str(fds[1])]
        if program is not None:
            fds.append(self._hold(program))
            arguments += ["--ro-bind-data", str(fds[2]), "/answer.py"]
        python = make_command("/host.py", role, "/answer.py", started, ["--limit-threads"])
        return self._open([*make_arguments(), *arguments, "--remount-ro", "/", "--", *python], fds, "/")

    def _start_with_limits(self, role: str, program: bytes | None, started: int) -> subprocess.Popen[bytes]:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="answer-")))
        if program is not None:
            (folder / "answer.py").write_bytes(program)
        steps = make_filter(platform.machine()) if sys.platform == "linux" else None
        options = [] if steps is None else ["--filter", base64.b64encode(steps).decode()]
        command = make_command(code_host.__file__, role, str(folder / "answer.py"), started, options)
        return self._open(command, [started], str(folder))

    def _open(self, command: list[str], fds: list[int], folder: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=fds,
            cwd=folder,
            env=make_environment(),
            start_new_session=True,
            preexec_fn=self._set_limits,
        )
        assert process.stdin is not None and process.stdout is not None
        for stream in (process.stdin, process.stdout):
            os.set_blocking(stream.fileno(), False)
        return process

    def _set_limits(self) -> None:
        """Set the kernel's limits, in the child."""
        memory, seconds = self.limits.memory, self.limits.seconds
        limits = {
            resource.RLIMIT_AS: memory,
            resource.RLIMIT_CPU: seconds,
            resource.RLIMIT_FSIZE: DISK,
            resource.RLIMIT_NOFILE: OPEN_FILES,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_STACK: STACK,
        }
        for which, wanted in limits.items():
            hard = resource.getrlimit(which)[1]
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            with suppress(ValueError, OSError):  # macOS has no limit of the address space
                resource.setrlimit(which, (limit, limit))

    def _hold(self, data: bytes) -> int:
        """Return a descriptor from which a child reads `data`."""
        file = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        file.write(data)
        file.seek(0)
        return file.fileno()

    # ------------------------------------------------------------------------------ to talk to it

    def _pump(self, data: bytes, close: bool = False, line: bool = False) -> None:
        """Write `data` and read, until a line is there, or the end. `close`: its input ends after `data`."""
        given, output = self._process.stdin, self._process.stdout
        assert given is not None and output is not None
        poll = select.poll()
        poll.register(output, select.POLLIN)
        left = memoryview(data)
        if left:
            poll.register(given, select.POLLOUT)
        elif close:
            given.close()
        while not (line and b"\n" in self._read):
            wait = self._until - time.monotonic()
            ready = dict(poll.poll(max(wait, 0) * 1000))
            if wait <= 0 or not ready:
                self._end_late()
            if left and given.fileno() in ready:
                left = left[self._write(left) :]
                if not left:
                    poll.unregister(given)
                    if close:
                        given.close()
            if output.fileno() in ready:
                read = os.read(output.fileno(), 1 << 16)
                if not read:
                    return
                self._read += read
                if len(self._read) > self.limits.output:
                    raise Stopped("too_much_output", f"it wrote more than {self.limits.output} bytes")

    def _write(self, left: memoryview) -> int:
        """Write what the pipe takes; all counts as written if nobody reads it any more."""
        assert self._process.stdin is not None
        try:
            return os.write(self._process.stdin.fileno(), left[: 1 << 16])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            return len(left)

    def _end_late(self) -> NoReturn:
        self._require_start("no answer")
        raise Stopped("timeout", f"it took longer than {WALL_FACTOR * self.limits.seconds} s")

    def _require_start(self, sign: str) -> None:
        """Raise OSError if code_host.py has not begun: then what went wrong is not the answer's fault."""
        os.set_blocking(self._started, False)
        try:
            begun = os.read(self._started, 1)
        except BlockingIOError:
            begun = b""
        if not begun:
            raise OSError(f"the sandbox did not start ({sign})")

    def _check_exit(self) -> None:
        """Wait for the end of a process that has closed its output. Raises Stopped unless it ended well."""
        try:
            code = self._process.wait(max(self._until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            self._end_late()
        if code == 0:
            return
        self._require_start(f"exit code {code}")
        if code in KILLED:
            raise Stopped("timeout", f"it took longer than {self.limits.seconds} s of processor time")
        raise Stopped("failed", f"it ended with exit code {code}")


def make_command(host: str, role: str, program: str, started: int, options: list[str]) -> list[str]:
    """Return the command line of a bare interpreter that runs code_host.py and writes to `started` when it does."""
    python = os.path.realpath(sys.executable)  # not that of a virtual environment, which is not there
    files = [] if role == "tests" else [program]
    return [python, "-I", "-S", "-B", host, "--started", str(started), *options, role, *files]


def make_environment() -> dict[str, str]:
    """Return the whole environment of an answer: nothing of this process's own is in it."""
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}


def make_arguments() -> list[str]:
    """Return bubblewrap's command line up to what the answer is."""
    bwrap = shutil.which("bwrap")
    assert bwrap is not None, "find_isolation_fault was asked"
    arguments = [bwrap, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--disable-userns"]
    arguments += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    arguments += ["--size", str(DISK), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            arguments += ["--ro-bind", path, path]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    base = os.path.realpath(sys.base_prefix)
    for path in [f"{base}/bin", f"{base}/lib"] if base in ("/usr", "/usr/local") else [base]:
        arguments += ["--ro-bind", path, path]
    for device in ("/dev/null", "/dev/urandom"):
        arguments += ["--dev-bind", device, device]
    return [*arguments, "--ro-bind", code_host.__file__, "/host.py"]


# ---- is it to be had? ------------------------------------------------------------------------------------------------


def find_isolation_fault() -> str | None:
    """Return in one sentence why bubblewrap cannot isolate an answer here, or None. Tries it, in a process of its own.

    Calling this is safe where a process has many threads.
    """
    if sys.platform != "linux":
        return f"bubblewrap is for Linux, this is {platform.system()}"
    if make_filter(platform.machine()) is None:
        return f"the system calls of {platform.machine()} are not known to grading/system_call_filter.py"
    if shutil.which("bwrap") is None:
        return f"bubblewrap (bwrap) is not installed ({INSTALL})"
    command = [*make_arguments(), "--remount-ro", "/", "--"]
    command += [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", "print(6 * 7)"]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, env=make_environment(), cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not start: {get_first_line(error)}"
    if done.returncode == 0 and done.stdout == "42\n":
        return None
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"bubblewrap cannot make a sandbox here ({said}); a container, or Ubuntu's AppArmor, may forbid it"


def require_isolation(isolation: Isolation, key: str) -> None:
    """Raise ValueError with a sentence if answers cannot be isolated as a config wants it; `key` names its section."""
    fault = find_isolation_fault() if isolation == "bubblewrap" else None
    if fault is not None:
        raise ValueError(
            f"{key} runs programs that a model wrote, and this machine cannot isolate them: {fault}. "
            f"On a machine without secrets, {key}.isolation=limits runs them with limits alone (docs/security.md)."
        )
