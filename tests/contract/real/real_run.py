"""Run `nemo-tapo` on NeMo-RL's real workers, on CPUs, and read what the run recorded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MODEL = ROOT / "assets" / "tiny-coldstart"
PYTHON = "NEMO_RL_WORKERS_PYTHON"
SOURCES = ("NEMO_RL_SRC", "MEGATRON_BRIDGE_SRC", "MEGATRON_LM_SRC")
PATIENCE = 900  # seconds until a run must have ended
FIXED = {  # nothing is downloaded or reported, no thread pool is larger than the machine
    "NO_VCS_VERSION": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TORCH_CUDA_ARCH_LIST": "9.0",
    "TORCH_COMPILE_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "WANDB_MODE": "disabled",
    "PYTHONWARNINGS": "ignore",
}


@dataclass
class RealRun:
    """A run's folder, and how its command line is started; `variables` are added to the environment."""

    folder: Path
    recipe: str  # a file in recipes/, without .yaml
    gpus: int = 1
    overrides: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # of its GPUs, and of Ray's folder

    @property
    def log(self) -> Path:
        return self.folder / "driver.log"

    def start(self, command: str = "train", *more: str) -> subprocess.Popen[str]:
        """Start `nemo-tapo <command>`; what it and its workers print goes to driver.log."""
        settings = (
            f"policy.model_name={MODEL}",
            f"cluster.gpus_per_node={self.gpus}",
            f"tapo.output={self.folder}",
            f"checkpointing.checkpoint_dir={self.folder / 'checkpoints'}",
            f"logger.log_dir={self.folder / 'logs'}",
        )
        config = HERE / "recipes" / f"{self.recipe}.yaml"
        driver = [str(HERE / "drive.py"), str(self.gpus), command, "--config", str(config)]
        return self._spawn([*driver, *settings, *self.overrides, *more])

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            return subprocess.Popen(
                [os.environ[PYTHON], *arguments],
                stdout=log,
                stderr=log,
                text=True,
                env=self._environment(),
                cwd=self.folder,
            )

    def run_python(self, *arguments: str) -> int:
        """Run the workers' Python in a run's environment and return the exit code."""
        return _wait(self._spawn(arguments))

    def finish(self, command: str = "train", *more: str) -> int:
        """Run `nemo-tapo <command>` to its end and return the exit code."""
        return _wait(self.start(command, *more))

    def kill_after(self, sign: Path) -> None:
        """Start a training run and kill it with all its workers as soon as `sign` is there."""
        process, deadline = self.start(), time.monotonic() + PATIENCE
        try:
            while not sign.exists():
                assert process.poll() is None and time.monotonic() < deadline, self.tail()
                time.sleep(0.05)
        finally:
            _kill_family(process)
            for folder in Path("/tmp").glob(f"nt-{self.name}-*"):  # of its Ray
                shutil.rmtree(folder, ignore_errors=True)

    def succeed(self, command: str = "train", *more: str) -> RealRun:
        """Run `nemo-tapo <command>` to its end, which must be a good one."""
        code = self.finish(command, *more)
        assert code == 0, f"exit code {code}:\n{self.tail()}"
        return self

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The metrics of every step."""
        return self.read_lines("metrics.jsonl")

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def _environment(self) -> dict[str, str]:
        sources = [Path(os.environ[name]).resolve() for name in SOURCES if os.environ.get(name)]
        bridge = os.environ.get("MEGATRON_BRIDGE_SRC")
        packages = [source / "src" if bridge and source == Path(bridge).resolve() else source for source in sources]
        python = Path(os.environ[PYTHON]).parent
        return {
            **os.environ,
            **FIXED,
            "NEMO_RL_SRC": str(sources[0]),
            "NEMO_RL_ON_CPU": self.name,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE / "shim", ROOT, *packages))),
            "PATH": f"{python}{os.pathsep}{os.environ.get('PATH', '')}",
            "HF_HOME": str(self.folder / "huggingface"),
            "VLLM_CACHE_ROOT": str(self.folder / "vllm"),
            "NRL_MEGATRON_CHECKPOINT_DIR": str(self.folder / "megatron"),
            **self.variables,
        }


def _wait(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(PATIENCE)
    finally:
        _kill_family(process)


def _kill_family(process: subprocess.Popen[str]) -> None:
    """Kill a driver; its workers end with it, and what is left of its Ray is killed as well."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    for each in alive:
        each.kill()
