"""Make one try: break a command, see how it ends, repeat it, and compare what it leaves with an undisturbed run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from faults.commands import COMMANDS, OUTPUT, Command, collect_results, find_difference
from faults.kinds import WITHIN, Fault, Lab, unmount
from faults.processes import Child, Preparation, start

REPEATS = 4  # of the command after the fault; each refusal says what has to be removed
AT_MOST = 600.0  # seconds of any run
PATH_END = "'\",;:()"


@dataclass(frozen=True)
class Trial:
    """What a try showed; one line of the results."""

    name: str
    level: str
    fault: str
    command: str
    moment: str
    code: int | None  # of the broken command; None: it did not end
    said: str  # its last line
    seconds: float  # from the fault to its end, or from its start where the fault strikes within it
    repeats: tuple[int | None, ...]  # exit codes of the same command, again
    removed: tuple[str, ...]  # what a refusal told to remove
    fault_found: str | None  # why the try was not survived

    @property
    def survived(self) -> bool:
        """True if everything went as docs/reliability.md promises."""
        return self.fault_found is None


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed run of a command, with which broken ones are compared."""

    seconds: float
    operations: int
    results: dict[str, Any]


def run_undisturbed(level: str, name: str, work: Path) -> Undisturbed:
    """Run a command undisturbed, unless `work` has the result of an earlier call."""
    kept = work / f"undisturbed-{level}-{name.replace(' ', '-')}.json"
    if kept.is_file():
        return Undisturbed(**json.loads(kept.read_text()))
    command, folder, counted = COMMANDS[level][name], work / kept.stem, work / f"{kept.stem}.count"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare(command, folder)
    begin = time.monotonic()
    child = start(command, folder, Preparation(count_in=counted), level == "scripted")
    code = child.wait(AT_MOST)
    seconds = time.monotonic() - begin
    child.end()
    if code != 0:
        raise RuntimeError(f"the undisturbed `{name}` ended with {code}: {child.said()[-2000:]}")
    operations = int(counted.read_text()) if counted.is_file() else 0
    found = Undisturbed(seconds, operations, collect_results(folder, command))
    kept.write_text(json.dumps(asdict(found)))
    return found


def prepare(command: Command, folder: Path) -> None:
    """Make what a command needs in `folder`: files, and the results of another command."""
    command.prepare(folder)
    if command.after is not None and start(command.after, folder, Preparation(), True).wait(AT_MOST) != 0:
        raise RuntimeError(f"{command.after.arguments[0]} failed, which {command.arguments[0]} needs; see {folder}")


def make_trial(name: str, level: str, fault: Fault, command: str, seed: str, work: Path) -> Trial:
    """Make the try `name`. Its folder stays if it was not survived."""
    undisturbed, folder = run_undisturbed(level, command, work), work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = COMMANDS[level][command]
    prepare(chosen, folder)
    lab = Lab(folder, chosen, level == "scripted", undisturbed.seconds, undisturbed.operations, Random(seed))
    try:
        begin = time.monotonic()
        child = fault.run(lab)
        child.wait(AT_MOST if child.poll() is None else 0)
        seconds, said = time.monotonic() - (lab.struck or begin), get_last_line(child)
        wrong = judge_end(fault, child, seconds if lab.struck else 0.0)
        if not (chosen.outlived and child.code == -signal.SIGKILL):
            wrong = wrong or judge_leftovers(child)
        fault.repair(lab)
        repeats, removed, refused = repeat(lab)
        expected = {name: result for name, result in undisturbed.results.items() if name not in fault.loses}
        wrong = wrong or refused or find_difference(collect_results(folder, chosen), expected)
        wrong = wrong or find_debris(folder / OUTPUT)
    finally:  # also when this tool is stopped in the middle
        for each in lab.started:
            each.end()
        unmount(folder)
    if wrong is None:
        shutil.rmtree(folder)
    return Trial(
        name, level, fault.name, command, lab.moment, child.code, said, round(seconds, 1), repeats, removed, wrong
    )


def judge_end(fault: Fault, child: Child, seconds: float) -> str | None:
    """Say what is wrong with the way in which a broken command ended; None if nothing is."""
    if child.poll() is None:
        return f"it did not end within {AT_MOST:g} s"
    said = get_last_message(child)
    if child.code != 0 and seconds > WITHIN:
        return f"it ended only after {seconds:.0f} s: {said[:300]}"
    if child.code not in fault.ends:
        return f"it ended with exit code {child.code}: {said[:300]}"
    if fault.ends[child.code] not in said:
        return f"its last message does not name the cause: {said[:300]}"
    if "Traceback" in child.said():
        return f"it shows a traceback: {said[:300]}"
    return None


def judge_leftovers(child: Child) -> str | None:
    """End what a command left; say which processes there were."""
    left = child.end()
    return f"it left processes behind: {', '.join(sorted(set(left)))}" if left else None


def repeat(lab: Lab) -> tuple[tuple[int | None, ...], tuple[str, ...], str | None]:
    """Give the same command again until it is done, and remove what a refusal tells to remove.

    Returns the exit codes, what was removed, and what went wrong.
    """
    codes: list[int | None] = []
    removed: list[str] = []
    for _ in range(REPEATS):
        child = lab.start()
        codes.append(child.wait(AT_MOST))
        left, said = child.end(), get_last_message(child)
        if left:
            return tuple(codes), tuple(removed), f"the same command again left {', '.join(left)}"
        if codes[-1] == 0:
            return tuple(codes), tuple(removed), None
        what = remove_as_told(said, lab.folder) if codes[-1] == 2 else None
        if what is None or "Traceback" in child.said():
            return tuple(codes), tuple(removed), f"the same command again ended with {codes[-1]}: {said[:300]}"
        removed.append(what)
    return tuple(codes), tuple(removed), f"the same command is refused again and again: {said[:300]}"


def remove_as_told(said: str, folder: Path) -> str | None:
    """Do what a refusal asks for ("remove the file", "remove that line"); return what it was, or None."""
    if "emove" not in said:
        return None
    before, _, after = said.partition("emove")
    words = [*after.split()[:4], *before.split()]  # "remove the folder X", or "X is damaged; remove it"
    paths = [folder / word.strip(PATH_END).rstrip(".") for word in words if OUTPUT in word]
    paths = [path for path in paths if path.exists()]
    if not paths:
        return None
    path, line = paths[0], re.search(r"line (\d+)", said)
    if line is not None and "that line" in said:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: int(line[1]) - 1] + lines[int(line[1]) :]))
        return f"{path.relative_to(folder / OUTPUT)}, line {line[1]}"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return str(path.relative_to(folder / OUTPUT))


def find_debris(output: Path) -> str | None:
    """Name a temporary file or folder that a finished command left; None if there is none."""
    left = sorted(p for p in output.rglob("*") if p.name.endswith(".tmp") or p.name.startswith("tmp-"))
    return f"{left[0].relative_to(output)} was left behind" if left else None


def get_last_message(child: Child) -> str:
    """Return what a command said last: from its last "nemo-tapo:" on, or else its last line."""
    said = child.said().strip()
    _, found, message = said.rpartition("nemo-tapo: ")
    return message if found else (said.splitlines() or [""])[-1]


def get_last_line(child: Child) -> str:
    """Return the first line of what a command said last, shortened."""
    return (get_last_message(child).splitlines() or [""])[0][:200]
