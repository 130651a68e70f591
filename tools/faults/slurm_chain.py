"""Break a chain of jobs on a Slurm of two nodes on this host; it has to end with an undisturbed run's weights.

A chain: the same command is submitted until it is done, and each of the first jobs is broken at a random moment. The
jobs are real ones, by tools/slurm/launch.py, with Ray across both nodes; the runtime is the scripted one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

from faults.commands import MODEL, OUTPUT, ROOT, Command, collect_results, find_difference
from faults.kinds import count_lines
from faults.trial import Trial, find_debris
from tests.slurm.cluster import ENDED, NODES, TWO_NODES, Slurm, cluster, on_node, why_not

STEPS = 240
SETTINGS = (
    "runtime=scripted", f"model.path={MODEL}", f"steps={STEPS}", "rollout.max_tokens=300", "tapo.max_tokens=700",
    "model.max_length=3000", "rollout.queries_per_step=4", "task.arithmetic.train_queries=64", "checkpoint.every=5",
    "checkpoint.min_free_gib=0",
)  # fmt: skip
TRAINING = Command(("train", *SETTINGS), ("hf/model.safetensors", "trajectories.jsonl"), ("metrics.jsonl",))
LAUNCH = (
    sys.executable, str(ROOT / "tools" / "slurm" / "launch.py"), "--python", sys.executable, "--cpus-per-node", "2",
    *TWO_NODES, "--chain", "3",
)  # fmt: skip
FAULTS_OF_A_CHAIN = 3
QUEUED_AGAIN = ("PENDING", "REQUEUED")
WITHIN = 120.0  # seconds in which a broken job has to end, or to be queued again: srun itself waits 60
AT_MOST = 300.0  # seconds of any job

Strike = Callable[[Slurm, str, Random], bool]  # breaks a job; False if there was nothing to break


def kill_one(nodes: Sequence[str], word: str) -> Strike:
    """Return what sends SIGKILL to a process of the job whose command line has `word`, on one of `nodes`."""

    def strike(slurm: Slurm, job: str, rng: Random) -> bool:
        found = on_node(rng.choice(list(nodes)), job, word)
        for process in found[:1]:
            process.kill()
        return bool(found)

    return strike


def signal_job(slurm: Slurm, job: str, rng: Random) -> bool:
    """Send what Slurm sends before the time limit."""
    slurm.call("scancel", "--signal=USR1", "--batch", job, check=False)
    return True


def requeue(slurm: Slurm, job: str, rng: Random) -> bool:
    """Take the nodes away, as a pre-empting partition does; the job is queued again."""
    slurm.call("scontrol", "requeue", job, check=False)
    return True


FAULTS: dict[str, tuple[Strike, str]] = {  # name -> (strike, a pattern that the log of a failed job has to have)
    "SIGKILL to the driver": (kill_one(NODES[:1], "nemo_tapo.cli train"), "FAILED: nemo-tapo ended with exit code"),
    "SIGKILL to a raylet": (kill_one(NODES, "raylet/raylet"), "FAILED: node n"),
    "SIGKILL to a node's step": (kill_one(NODES, "node.sh"), "FAILED: (node n|srun ended with exit code)"),
    "the signal before the time limit": (signal_job, ""),
    "taken off its nodes and queued again": (requeue, ""),
}


@contextmanager
def open_cluster() -> Iterator[Slurm]:
    """Start the Slurm of the launcher's tests. Raises RuntimeError where none can be started."""
    if reason := why_not():
        raise RuntimeError(f"no Slurm here: {reason}")
    with tempfile.TemporaryDirectory(prefix="nt-slurm-") as folder, cluster(Path(folder) / "slurm") as slurm:
        yield slurm


def run_undisturbed_training(folder: Path) -> dict[str, object]:
    """Return the results of the command without Slurm, and keep them in `folder`."""
    if not (folder / OUTPUT / "hf").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "nemo_tapo.cli", *TRAINING.arguments, f"output={folder / OUTPUT}"]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=make_environment(dict(os.environ)))
    return collect_results(folder, TRAINING)


def make_environment(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment in which results do not depend on the number of threads."""
    return {**environment, "OMP_NUM_THREADS": "1"}


def submit(slurm: Slurm, folder: Path) -> str:
    """Submit the training; return the job's number."""
    command = [*LAUNCH, "--", *TRAINING.arguments, f"output={folder / OUTPUT}"]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=folder, env=make_environment(slurm.environment)
    )
    return done.stdout.split()[1].rstrip(",")


def make_chain(name: str, seed: str, slurm: Slurm, work: Path) -> list[Trial]:
    """Break a chain FAULTS_OF_A_CHAIN times and let it end. Return a line for each fault."""
    expected, folder, rng = run_undisturbed_training(work / "undisturbed-slurm"), work / name, Random(seed)
    folder.mkdir(parents=True)
    broken = [break_job(f"{name}-{number}", slurm, folder, rng) for number in range(FAULTS_OF_A_CHAIN)]
    job = submit(slurm, folder)
    state = wait_for_end(slurm, job, AT_MOST)
    wrong = None if state == "COMPLETED" else f"the last job is {state}: {tell_log(folder, job)[-300:]}"
    wrong = wrong or find_difference(collect_results(folder, TRAINING), expected) or find_debris(folder / OUTPUT)
    if wrong is None and all(each.survived for each in broken):
        shutil.rmtree(folder)
    return [replace(each, fault_found=each.fault_found or wrong) for each in broken]


def break_job(name: str, slurm: Slurm, folder: Path, rng: Random) -> Trial:
    """Submit a job of a chain and break it. A job that is queued again then is cancelled: the next one goes on."""
    job = submit(slurm, folder)
    fault, steps, delay = rng.choice(list(FAULTS)), rng.randrange(40), 2 * rng.random()
    strike, words = FAULTS[fault]
    if rng.random() < 0.25:  # while it starts
        steps, delay = 0, 12 * rng.random()
    file = folder / OUTPUT / "metrics.jsonl"
    wanted, until = min(count_lines(file) + steps, STEPS - 1), time.monotonic() + AT_MOST
    while count_lines(file) < wanted and not has_ended(slurm, job) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(delay)
    begin, moment = time.monotonic(), f"{count_lines(file)} steps done"
    if has_ended(slurm, job) or not strike(slurm, job, rng):
        moment += "; nothing to break"
        words = ""
    state = wait_for_end(slurm, job, WITHIN, requeued=True)
    seconds, said = round(time.monotonic() - begin, 1), tell_log(folder, job)
    wrong = None
    if state == "FAILED" and not re.search(words, said):
        wrong = f"the log does not name the cause: {said[-300:]}"
    elif state not in (*ENDED, *QUEUED_AGAIN):
        wrong = f"it is {state} {seconds:.0f} s after the fault"
    code = None if state in QUEUED_AGAIN else int(slurm.job(job)["ExitCode"].split(":")[0])
    slurm.call("scancel", job, check=False)
    wait_for_end(slurm, job, AT_MOST)
    last = (said.strip().splitlines() or [""])[-1][:200]
    return Trial(name, "slurm", fault, "train", moment, code, last, seconds, (), (), wrong)


def has_ended(slurm: Slurm, job: str) -> bool:
    return slurm.job(job)["JobState"] in ENDED


def wait_for_end(slurm: Slurm, job: str, seconds: float, requeued: bool = False) -> str:
    """Wait until a job has ended or, with `requeued`, waits in the queue again; return its state after `seconds`."""
    end = time.monotonic() + seconds
    while (found := slurm.job(job))["JobState"] not in ENDED and time.monotonic() < end:
        if requeued and int(found.get("Restarts", "0")):
            return "REQUEUED"  # it may run again already
        time.sleep(0.3)
    return found["JobState"]


def tell_log(folder: Path, job: str) -> str:
    """Return what a job has printed."""
    file = folder / OUTPUT / "slurm" / f"{job}.log"
    return file.read_text(errors="replace") if file.is_file() else ""
