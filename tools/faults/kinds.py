"""The kinds of fault: what each does to a command, and the ways in which the command may end.

Every random choice of a try comes from its own generator, so a try can be repeated by its number.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from faults.commands import OUTPUT, Command
from faults.damage import DAMAGES, FILES, LOST_WITH, damage_file, find_files
from faults.processes import Child, Preparation, start

WITHIN = 60.0  # seconds in which a broken command has to end
ANYTHING = ""
NAMES = {
    "engine": "VllmEngine",
    "rank": "MegatronWorker",
    "raylet": "raylet/raylet ",
    "grader": "nemo_tapo.grading.grader",
}
PAUSE = 3.0  # seconds for which a process is stopped and then goes on
DISK_BYTES = 64 << 20


@dataclass
class Lab:
    """One try: its folder, its command, what an undisturbed run of the command is like, and its random numbers."""

    folder: Path
    command: Command
    inside: bool  # the command runs in a fork, on the scripted runtime
    seconds: float  # that an undisturbed run takes
    operations: int  # on files, of an undisturbed run; 0 if unknown
    rng: Random
    moment: str = ""  # when the fault struck, in words
    struck: float | None = None  # the same by time.monotonic, where it is known
    started: list[Child] = field(default_factory=list)

    def start(self, **preparation: Any) -> Child:
        """Start the command in this try's folder."""
        child = start(self.command, self.folder, Preparation(**preparation), self.inside)
        self.started.append(child)
        return child

    def draw_operation(self, least: float = 0.0) -> int:
        """Draw a file operation, among the last 1 - `least` of all."""
        number = 1 + int(self.operations * self.rng.uniform(least, 1.0))
        self.moment = f"file operation {number} of {self.operations}"
        return number

    def wait_moment(self, child: Child) -> None:
        """Wait for a random moment of the run, or until it has ended.

        Half of the time of a run with real engines is their start: three of four moments come after the first step.
        """
        begin, file = time.monotonic(), self.folder / OUTPUT / "metrics.jsonl"
        delay, steps = self.seconds * self.rng.random(), 0
        if not self.inside and self.rng.random() < 0.75:
            steps, delay = self.rng.randrange(1, 6), 2.5 * self.rng.random()
        while steps and child.poll() is None and count_lines(file) < steps:
            time.sleep(0.01)
        waited = time.monotonic() + delay
        while child.poll() is None and time.monotonic() < waited:
            time.sleep(0.002)
        self.struck = time.monotonic()
        self.moment = f"{self.struck - begin:.1f} s after the start, {count_lines(file)} steps done"


def count_lines(file: Path) -> int:
    """Return the number of complete lines of a file; 0 if there is none."""
    return file.read_bytes().count(b"\n") if file.is_file() else 0


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    run: Callable[[Lab], Child]  # breaks a run of the command and returns it, or the restart that met the fault
    ends: Mapping[int, str]  # exit codes that are right, each with words that the last message has to have
    commands: tuple[str, ...] = ("run",)
    levels: tuple[str, ...] = ("scripted",)
    repair: Callable[[Lab], None] = field(default=lambda lab: None)  # ends the cause, before the command is repeated
    loses: tuple[str, ...] = ()  # results of which a part may be gone; docs/reliability.md says so


# ---- signals ---------------------------------------------------------------------------------------------------------


def send(signum: int, victim: str, pause: bool = False) -> Callable[[Lab], Child]:
    """Return what sends a signal to a process of the run at a random moment."""

    def run(lab: Lab) -> Child:
        if victim == "driver" and lab.inside and not pause and lab.rng.random() < 0.5:
            return lab.start(operation=lab.draw_operation(), strike=lambda: os.kill(os.getpid(), signum))
        child = lab.start()
        lab.wait_moment(child)
        if victim == "driver":
            child.send(signum)
        else:
            for process in lab.rng.sample(found := child.find(NAMES[victim]), min(1, len(found))):
                process.send_signal(signum)
        if pause:
            time.sleep(PAUSE)
            child.send(signal.SIGCONT)
        return child

    return run


# ---- the disk --------------------------------------------------------------------------------------------------------


def fill_disk(lab: Lab) -> Child:
    """Run on a small disk, which is full from a random file operation or moment on."""
    output, room = lab.folder / OUTPUT, lab.rng.choice((0, 0, 4096, 16384, 65536))
    output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(output)], check=True)

    def fill() -> None:
        ballast = os.open(output / "ballast", os.O_WRONLY | os.O_CREAT)
        free = os.statvfs(output).f_bavail * os.statvfs(output).f_frsize
        os.posix_fallocate(ballast, 0, max(1, free - room))
        os.close(ballast)

    if lab.inside:
        child = lab.start(operation=lab.draw_operation(), strike=fill)
    else:
        child = lab.start()
        lab.wait_moment(child)
        fill()
    lab.moment += f", {room} bytes left"
    return child


def free_disk(lab: Lab) -> None:
    """Make room again."""
    (lab.folder / OUTPUT / "ballast").unlink(missing_ok=True)


def unmount(folder: Path) -> None:
    """Unmount a try's disk if it has one."""
    if os.path.ismount(folder / OUTPUT):
        subprocess.run(["umount", "-l", str(folder / OUTPUT)], check=True)


def find_mount_fault(folder: Path) -> str | None:
    """Say why no small disk can be mounted; None if one can."""
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    probe = folder / "probe"
    probe.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(probe)], capture_output=True, text=True)
    if done.returncode:
        return f"no small disk can be mounted ({done.stderr.strip()})"
    subprocess.run(["umount", str(probe)], check=True)
    return None


# ---- files -----------------------------------------------------------------------------------------------------------


def damage(patterns: Mapping[str, str]) -> Callable[[Lab], Child]:
    """Return what kills a run, damages one of its files and starts it again."""

    def run(lab: Lab) -> Child:
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        if lab.inside and lab.rng.random() < 0.8:
            lab.start(operation=lab.draw_operation(0.3), strike=kill).wait(10 * WITHIN)
        else:
            child = lab.start()
            lab.wait_moment(child)
            child.send(signal.SIGKILL)
            child.end()
        output = lab.folder / OUTPUT
        if not (there := find_files(output, patterns)):  # the file comes later than the kill
            lab.moment = "after the end"
            whole = lab.start()
            if whole.wait(10 * WITHIN) != 0:
                return whole
            there = find_files(output, patterns)
        what = lab.rng.choice(sorted(there))
        file, how = lab.rng.choice(there[what]), lab.rng.choice(DAMAGES)
        damage_file(file, how, lab.rng)
        lab.moment += f"; {file.relative_to(output)} {how}"
        lab.struck = time.monotonic()
        return lab.start()

    return run


# ---- the surroundings ------------------------------------------------------------------------------------------------


def start_second(lab: Lab) -> Child:
    """Start the same command again while the first is at work; return the second when both have ended."""
    first = lab.start()
    lab.wait_moment(first)
    second, lab.struck = lab.start(), time.monotonic()
    second.wait(WITHIN)
    first.wait(10 * WITHIN)
    return second


def set_clock_back(lab: Lab) -> Child:
    """Set the clock that the command reads (time.time) back by hours at a random moment; the machine's stays."""
    at, by = lab.seconds * lab.rng.random(), lab.rng.choice((60, 3600, 86400))
    lab.moment = f"by {by} s, {at:.1f} s after the start"

    def patch() -> None:
        real, begin = time.time, time.monotonic()
        time.time = lambda: real() - by * (time.monotonic() - begin > at)

    return lab.start(begin=patch)


def limit_files(lab: Lab) -> Child:
    """Allow few open files more than the command begins with."""
    more = lab.rng.randrange(2, 24) if lab.inside else lab.rng.randrange(8, 400)
    lab.moment = f"{more} more than at the start"

    def limit() -> None:
        most = len(os.listdir("/proc/self/fd")) + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return lab.start(begin=limit)


def limit_memory(lab: Lab) -> Child:
    """Allow little more address space than the command begins with."""
    more = lab.rng.randrange(1, 160) << 20
    lab.moment = f"{more >> 20} MiB more than at the start"

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return lab.start(begin=limit)


def feed_grader(lab: Lab) -> Child:
    """Let the user's reward function take all the memory that it can get."""
    (lab.folder / "hungry.flag").touch()
    lab.moment = "over every sixteenth response"
    return lab.start()


EVERY_COMMAND = ("run", "run with its report", "coldstart", "filter", "evaluate", "judge", "sweep")
FULL_DISK = {4: "no room on the disk", 1: "failed with exit code 4", 0: ANYTHING}  # 1: a sweep, of its run
STOPPED = {143: "goes on from there", -15: ANYTHING, 0: ANYTHING}
LOCAL_ONLY = ("local",)
BOTH = ("scripted", "local")
FAULTS = (
    Fault("SIGKILL to the driver", send(signal.SIGKILL, "driver"), {-9: ANYTHING, 0: ANYTHING}, EVERY_COMMAND, BOTH),
    Fault("SIGTERM to the driver", send(signal.SIGTERM, "driver"), STOPPED, EVERY_COMMAND, BOTH),
    Fault("SIGSTOP to the driver, SIGCONT later", send(signal.SIGSTOP, "driver", True), {0: ANYTHING}, levels=BOTH),
    *(
        Fault(f"{name} to {article} {victim}", send(getattr(signal, name), victim), {3: words, 0: ANYTHING},
              levels=LOCAL_ONLY)
        for victim, article, words in (
            ("engine", "the", "vLLM engine"), ("rank", "a Megatron", "Megatron rank"), ("raylet", "the", "Ray"),
        )
        for name in ("SIGKILL", "SIGTERM", "SIGSTOP")
    ),
    Fault("SIGKILL to a grader", send(signal.SIGKILL, "grader"), {0: ANYTHING}, ("train by a user's reward",)),
    Fault("a grader that eats memory", feed_grader, {0: ANYTHING}, ("train by a user's reward",)),
    Fault("a full disk", fill_disk, FULL_DISK, EVERY_COMMAND, BOTH, free_disk),
    *(
        Fault(f"{what} damaged", damage({what: pattern}), {0: ANYTHING, 2: "/"}, loses=LOST_WITH.get(what, ()))
        for what, pattern in FILES.items()
    ),
    Fault("a file damaged", damage(FILES), {0: ANYTHING, 2: "/"}, levels=LOCAL_ONLY,
          loses=LOST_WITH["trajectories.jsonl"]),
    Fault("two commands in one folder", start_second, {2: "another process is at work", 0: ANYTHING},
          ("run", "coldstart", "filter", "evaluate", "sweep"), BOTH),
    Fault("the clock set back", set_clock_back, {0: ANYTHING}),
    Fault("open files limited", limit_files, {1: "open files", 3: "open files", 0: ANYTHING}, ("run", "coldstart")),
    Fault("memory limited", limit_memory, {1: "memory", 3: "memory", 0: ANYTHING}, ("run", "coldstart")),
)  # fmt: skip
