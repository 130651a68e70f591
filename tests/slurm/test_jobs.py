"""Jobs on a real Slurm of two nodes on this host: finish, stop and requeue, fail with a name, sweep.

What is about Slurm runs on the scripted runtime, seconds a job; Ray across nodes runs the real engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import ENDED, TWO_NODES, Slurm, cluster, on_node, why_not
from tests.slurm.pyxis import make_image

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools" / "slurm" / "launch.py"
CONFIG = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
SCRIPTED = (
    f"runtime=scripted model.path={ROOT}/assets/tiny-base rollout.max_tokens=300 tapo.max_tokens=700 "
    "model.max_length=3000 rollout.queries_per_step=4 task.arithmetic.train_queries=64 checkpoint.every=1000 "
    "checkpoint.min_free_gib=0"
).split()
REAL = [
    f"model.path={ROOT}/assets/tiny-coldstart", "rollout.queries_per_step=4", "rollout.samples_per_query=6",
    "local.dp=2", "local.threads=2", "checkpoint.every=1", "checkpoint.min_free_gib=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(f"{reason}: jobs are not tested here.")
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


def submit(
    slurm: Slurm,
    folder: Path,
    *arguments: str,
    options: tuple[str, ...] = (),
    verb: str = "train",
    image: Path | None = None,
) -> str:
    """Through the launcher, from a folder that is not the repository's; returns the job's number."""
    place = ("--container", "any") if image else ("--python", sys.executable)
    command = [sys.executable, str(LAUNCH), *place, "--cpus-per-node", "2", *options, "--", verb]
    environment = {**slurm.environment, "OMP_NUM_THREADS": "1"}
    if image:
        environment["PATH"] = f"{image}:{environment['PATH']}"
        command = ["prlimit", "--nofile=1024:", *command]  # Slurm hands the soft limit on
    done = subprocess.run(
        [*command, *arguments, f"output={folder}"],
        check=False, capture_output=True, text=True, cwd=folder.parent, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1].rstrip(",")


def log(folder: Path, job: str) -> str:
    return (folder / "slurm" / f"{job}.log").read_text()


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} within {seconds:g} s"
        time.sleep(0.1)


def steps(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "hf" / "model.safetensors").read_bytes()).hexdigest()


def mounts_of(processes: list[psutil.Process]) -> set[str]:
    """Their mount namespaces: which /tmp they have."""
    return {os.readlink(f"/proc/{process.pid}/ns/mnt") for process in processes}


def listens_at(process: psutil.Process) -> set[int]:
    return {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def test_stopped_requeued_and_resumed_it_ends_with_the_same_weights(slurm: Slurm, tmp_path: Path) -> None:
    """The signal that Slurm sends before the limit, twice; then --chain is used up, and the same command goes on.

    The config file is made unreadable after submission: a queued job runs what it was submitted with.
    """
    config, folder = tmp_path / "mine.yaml", tmp_path / "run"
    config.write_text("steps: 300\n")
    arguments = ("--config", str(config), *SCRIPTED)
    job = submit(slurm, folder, *arguments, options=("--chain", "2", "--sbatch", "hold"))
    config.write_text("steps: [")
    slurm.call("scontrol", "release", job)

    until(lambda: steps(folder) >= 3, "third step")
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    until(lambda: "allocation 2 of at most 2" in log(folder, job), "second allocation")
    done_before = steps(folder)
    assert "stopped by SIGUSR1; checkpoint of step" in log(folder, job)
    assert done_before < 300

    until(lambda: steps(folder) >= done_before + 3, "step of the second allocation")
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "138:0", "1")
    assert "submit the same command again to go on" in log(folder, job)
    assert steps(folder) < 300

    config.write_text("steps: 300\n")
    again = submit(slurm, folder, *arguments)
    assert slurm.wait(again)["JobState"] == "COMPLETED", log(folder, again)

    undisturbed = tmp_path / "undisturbed"
    command = [sys.executable, "-m", "nemo_tapo.cli", "train", *arguments, f"output={undisturbed}"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=120)
    assert digest(folder) == digest(undisturbed)
    assert (folder / "metrics.jsonl").read_text().count("\n") == 300


def test_two_nodes_in_containers(slurm: Slurm, tmp_path: Path) -> None:
    """On the first node the driver is in the container of Ray's head: it reaches Ray by sockets in /tmp."""
    folder, image = tmp_path / "run", make_image(tmp_path / "image")
    options = (*TWO_NODES, "--mounts", f"{ROOT}/assets:{ROOT}/assets")
    job = submit(slurm, folder, "--config", str(CONFIG), *REAL, "steps=3", options=options, image=image)
    until(lambda: steps(folder) >= 1 or slurm.job(job)["JobState"] in ENDED, "first step", 200)
    driver, scripts = on_node("n1", job, "nemo_tapo.cli"), on_node("n1", job, "slurm/node.sh")
    workers = {name: on_node(name, job, "MegatronWorker") for name in ("n1", "n2")}
    assert [len(found) for found in workers.values()] == [1, 1], log(folder, job)
    first = mounts_of([*driver, *on_node("n1", job, "raylet/raylet"), *workers["n1"]])
    second = mounts_of([*on_node("n2", job, "raylet/raylet"), *workers["n2"]])
    assert (len(first), len(second), len(first & second)) == (1, 1, 0)
    assert os.readlink("/proc/self/ns/mnt") not in first | second

    assert driver[0].environ()["HF_HOME"] == f"{tmp_path}/model-cache/huggingface"
    hard = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)[1]
    assert {p.rlimit(psutil.RLIMIT_NOFILE)[0] for p in scripts} == {min(65535, hard)}
    system = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for process in (*driver, *workers["n1"], *workers["n2"]):  # gloo's own ports are the system's
        assert any(port < system for port in listens_at(process)), listens_at(process)

    ended = slurm.wait(job)
    assert ended["JobState"] == "COMPLETED", log(folder, job)
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()] == [1, 2, 3]
    assert (folder / "hf" / "model.safetensors").is_file()
    assert list((folder / "slurm" / job / "0" / "ray").glob("n?/*")), "Ray's logs are kept"


def test_a_dead_worker_fails_the_job_with_its_name(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = submit(slurm, folder, "--config", str(CONFIG), *REAL, "steps=300", options=TWO_NODES)
    until(lambda: steps(folder) >= 2 or slurm.job(job)["JobState"] in ENDED, "second step", 200)
    engines = [len(on_node(name, job, "VllmEngine")) for name in ("n1", "n2")]
    assert engines == [1, 0], log(folder, job)  # beside the driver
    victims = on_node("n2", job, "MegatronWorker")
    assert len(victims) == 1, log(folder, job)
    victims[0].kill()
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    text = log(folder, job)
    assert re.search(r"Megatron rank 1 of 2 died", text), text
    assert "FAILED: nemo-tapo ended with exit code 3" in text


def test_ray_lost_on_a_node_fails_the_job_with_the_nodes_name(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = submit(slurm, folder, *SCRIPTED, "steps=100000", options=TWO_NODES)
    until(lambda: steps(folder) >= 1, "first step")
    raylets = [p for p in on_node("n2", job, "raylet/raylet") if p.name() == "raylet"]
    assert len(raylets) == 1
    raylets[0].send_signal(signal.SIGKILL)
    until(lambda: (folder / "slurm" / job / "0" / "nodes" / "n2.failed").exists(), "word of the node")
    ended = slurm.wait(job)
    assert ended["JobState"] == "FAILED"
    assert "FAILED: node n2: Ray ended with exit code" in log(folder, job)


def test_a_node_whose_step_is_killed_fails_the_job_with_its_name(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = submit(slurm, folder, *SCRIPTED, "steps=100000", options=TWO_NODES)
    until(lambda: steps(folder) >= 1, "first step")
    keepers = on_node("n2", job, "node.sh")
    assert keepers, log(folder, job)
    for keeper in keepers:
        keeper.kill()
    ended = slurm.wait(job)
    assert ended["JobState"] == "FAILED"
    assert "node n2: its step was killed" in log(folder, job)
    assert "node n1: its step was killed" not in log(folder, job)


def test_a_node_that_hangs_ends_the_job_with_its_name(slurm: Slurm, tmp_path: Path) -> None:
    """Its python does not answer, as on a node whose file system hangs."""
    folder, python = tmp_path / "run", tmp_path / "python"
    python.write_text(f'#!/bin/bash\n[ "$SLURMD_NODENAME" = n2 ] && sleep 1000\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = (*TWO_NODES, "--start-minutes", "0.5", "--python", str(python))
    begin = time.monotonic()
    job = submit(slurm, folder, *SCRIPTED, "steps=3", options=options)
    ended = slurm.wait(job)
    assert ended["JobState"] == "FAILED"
    assert "node n2" in log(folder, job)
    assert time.monotonic() - begin < 120  # not 1000
    assert not steps(folder)


def test_a_sweep_of_three(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    settings = [*SCRIPTED, "evaluation.problems=8", "evaluation.runs=1", "evaluation.synthesis_queries=8"]
    job = submit(slurm, folder, *settings, options=("--sweep", "seed=1,2,3"), verb="evaluate")
    for task in range(3):
        run = folder / f"{task:03d}-seed-{task + 1}"
        assert slurm.wait(f"{job}_{task}")["JobState"] == "COMPLETED", log(folder, f"{job}_{task}")
        assert f"seed: {task + 1}\n" in (run / "config.yaml").read_text()
        assert (run / "evaluation.json").is_file()


def test_no_process_of_a_job_is_left(slurm: Slurm) -> None:
    """The last of this file."""
    slurm.call("scancel", "--user=root")
    until(lambda: not slurm.call("squeue", "-h").strip(), "empty queue")
    until(lambda: not left(slurm), "end of the jobs' processes", 30)


def left(slurm: Slurm) -> list[psutil.Process]:
    """Processes of this cluster's jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if "SLURM_JOB_ID" in environment and environment.get("SLURM_CONF") == slurm.environment["SLURM_CONF"]:
            found.append(process)
    return found
