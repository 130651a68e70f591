"""A Slurm of two nodes on this host, for tests: daemons of its own on loopback, files of its own, gone afterwards.

    with cluster(folder) as slurm:
        slurm.call("sbatch", ...)

By hand, to try the launcher:  python tests/slurm/cluster.py FOLDER   (prints the SLURM_CONF to export; Ctrl-C ends it)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

NODES = ("n1", "n2")
# What the launcher needs for them. Both nodes are this host. 127.0.0.1 itself Ray takes for "find my address out",
# others of loopback as they are.
ADDRESSES = "NT_ADDRESSES=n1=127.0.0.2 n2=127.0.0.3"
TWO_NODES = ("--nodes", "2", "--env", "NT_OBJECT_STORE=100000000", "--env", ADDRESSES)
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
KillWait=20
InactiveLimit=0
PartitionName=batch Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=1000\n"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")


@dataclass(frozen=True)
class Slurm:
    """A running cluster; `environment` is what its commands need."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str | Path, check: bool = True, **options: object) -> str:
        """Standard output of a Slurm command (or any other that calls Slurm)."""
        done = subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, env=self.environment, timeout=60, **options
        )  # type: ignore[call-overload]
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return str(done.stdout)

    def job(self, job: str) -> dict[str, str]:
        """`scontrol show job` as a mapping: JobState, ExitCode, Restarts, NodeList, ..."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, states: tuple[str, ...] = ENDED, seconds: float = 180) -> dict[str, str]:
        """The job once its state is one of `states`; AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while (found := self.job(job))["JobState"] not in states:
            assert time.monotonic() < end, f"job {job} is {found['JobState']} ({found.get('Reason')}), not {states}"
            time.sleep(0.3)
        return found


def why_not() -> str | None:
    """Why no cluster can be started here; None if it can. Installs Slurm where that is possible."""
    if os.geteuid() != 0:
        return "Slurm's daemons have to be started as root"
    if all(shutil.which(name) for name in NEEDED):
        return None
    if not shutil.which("apt-get"):
        return "Slurm is not installed (slurm-wlm and munge), and there is no apt-get"
    options = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "slurm-wlm", "munge"]):
        done = subprocess.run(["apt-get", *command], check=False, **options)  # type: ignore[call-overload]
        if done.returncode:
            return f"apt-get {command[0]} fails: {done.stderr.strip().splitlines()[-1:]}"
    return None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Starts munge, the controller and a daemon for each node, in that order; ends them in the other."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    for name in NODES:
        (folder / f"spool.{name}").mkdir()
    host, ports = socket.gethostname().split(".")[0], free_ports(1 + len(NODES))
    text = CONF.format(host=host, folder=folder, ports=ports, names=",".join(NODES))
    text += "".join(NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, ports[1:], strict=True))
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "RAY_"))}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    slurm = Slurm(folder, environment)
    with contextlib.ExitStack() as stack:
        munge = [f"--{o}={folder}/munge.{e}" for o, e in zip(MUNGE_FILES, MUNGE_ENDINGS, strict=True)]
        stack.enter_context(daemon(["munged", "--foreground", "--force", "--num-threads=2", *munge], slurm))
        wait_for(lambda: (folder / "munge.socket").exists(), "munged")
        stack.enter_context(daemon(["slurmctld", "-D"], slurm))
        for name in NODES:
            stack.enter_context(daemon(["slurmd", "-D", "-N", name], slurm))
        wait_for(
            lambda: slurm.call("sinfo", "-h", "-o", "%t %D", check=False).split() == ["idle", "2"], "two idle nodes"
        )
        try:
            yield slurm
        finally:  # steps belong to no daemon of ours any more: Slurm has to end them
            slurm.call("scancel", "--user=root", check=False)
            wait_for(lambda: not slurm.call("squeue", "-h", check=False).strip(), "an empty queue")


MUNGE_FILES = ("key-file", "socket", "pid-file", "log-file", "seed-file")
MUNGE_ENDINGS = ("key", "socket", "pid", "log", "seed")


@contextlib.contextmanager
def daemon(command: list[str], slurm: Slurm) -> Iterator[None]:
    """A daemon in the foreground, its output in <folder>/<name>.out; it ends with this process at the latest."""
    name = "-".join(w for w in (command[0], command[-1]) if not w.startswith("-"))
    with (slurm.folder / f"{name}.out").open("w") as out:
        command = ["setpriv", "--pdeathsig", "TERM", *command]  # also when the tests are killed
        process = subprocess.Popen(command, env=slurm.environment, stdout=out, stderr=out, start_new_session=True)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(condition: object, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"no {what} after {seconds:g} s"
        time.sleep(0.3)


def on_node(name: str, job: str, word: str) -> list[psutil.Process]:
    """Processes of a job on a node whose command line has `word`."""
    return [p for p in psutil.process_iter() if word in " ".join(line_of(p)) and place_of(p) == (name, job)]


def line_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def place_of(process: psutil.Process) -> tuple[str, str] | None:
    """(node, job) by the environment of the nearest ancestor that tells: Ray's workers write over their own."""
    try:
        for ancestor in (process, *process.parents()):
            environment = ancestor.environ()
            if "SLURMD_NODENAME" in environment:
                return environment["SLURMD_NODENAME"], environment["SLURM_JOB_ID"]
    except psutil.Error:
        return None
    return None


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    with cluster(Path(sys.argv[1]).resolve()) as started, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={started.environment['SLURM_CONF']}", flush=True)
        signal.pause()
