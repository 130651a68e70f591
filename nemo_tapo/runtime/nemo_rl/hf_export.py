"""Export the newest checkpoint as a Hugging Face directory with the converters of NeMo-RL's checkout.

A converter runs as a separate program: the workers' environment has Megatron, the driver's does not. What it wrote is
checked tensor by tensor. This export has not been tested on a GPU.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nemo_tapo.runtime.nemo_rl.checkpoint_manager import find_newest_checkpoint
from nemo_tapo.runtime.nemo_rl.config.checkout import find_source
from nemo_tapo.runtime.nemo_rl.export_check import find_export_fault, locate_original, write_safetensors
from nemo_tapo.runtime.nemo_rl.nemo_calls import CALL_TIMEOUT
from nemo_tapo.utils.errors import RuntimeFailure

MEGATRON_PYTHON = "python-MegatronPolicyWorker"  # in NVIDIA's container: the Megatron workers' interpreter
POLL = 0.2  # seconds between looks at the converter, the clock and a request to stop


@dataclass(frozen=True)
class HFConverter:
    """A callable that exports a model: `HFConverter(...)(path)` writes the directory `path`."""

    checkpoints: Path  # checkpointing.checkpoint_dir
    policy: Mapping[str, Any]  # NeMo-RL's section of that name
    timeout: float = CALL_TIMEOUT  # seconds for the converter
    check_stop: Callable[[str], None] = lambda saved: None  # raises Stopped if a stop was requested

    def __call__(self, path: Path) -> None:
        """Write the directory `path`; what an interrupted export left there is removed first.

        Raises RuntimeFailure if the converter is missing, fails, hangs, or leaves an incomplete model; the message has
        the command to run by hand. Raises Stopped if a stop was requested; the same command then exports anew.
        """
        shutil.rmtree(path, ignore_errors=True)  # the converters refuse a folder that exists
        command = self.command(path)
        by_hand = f"By hand: {shlex.join(command)}"
        with tempfile.TemporaryFile() as errors:
            code = self._run(command, errors)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()[-500:]
        if code != 0:
            reason = f"did not end within {self.timeout:g} seconds (tapo.call_timeout)" if code is None else "failed"
            raise RuntimeFailure(
                f"training is done and its checkpoint saved, but NeMo-RL's converter {reason} ({said}). {by_hand}"
            )
        write_safetensors(path)
        fault = find_export_fault(path, locate_original(self.policy["model_name"]), str(self.policy.get("precision")))
        if fault is not None:
            raise RuntimeFailure(
                f"training is done and its checkpoint saved, but the model that NeMo-RL's converter wrote to {path} is "
                f"not the trained one's ({fault}). {by_hand}"
            )

    def _run(self, command: list[str], errors: IO[bytes]) -> int | None:
        """Run the converter; return its exit code, None if it took too long. End it when a stop is requested."""
        end = time.monotonic() + self.timeout
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        try:
            while process.poll() is None:
                self.check_stop("training is done and its checkpoint saved; the export is made anew")
                if time.monotonic() > end:
                    return None
                time.sleep(POLL)
            return process.returncode
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes it started
                process.wait()

    def command(self, path: Path) -> list[str]:
        """Return the converter's command line for the newest checkpoint.

        Raises RuntimeFailure if there is no NeMo-RL checkout on this machine.
        """
        checkpoint, checkout = find_newest_checkpoint(self.checkpoints), find_source()
        assert checkpoint is not None, "export comes after the last step's checkpoint"
        if checkout is None:
            raise RuntimeFailure(
                f"training is done and {checkpoint.path} saved; to export it, NeMo-RL's examples/converters are "
                "needed: set NEMO_RL_SRC to its checkout."
            )
        weights, scripts = checkpoint.path / "policy" / "weights", checkout / "examples" / "converters"
        if (self.policy.get("megatron_cfg") or {}).get("enabled"):
            python, script = shutil.which(MEGATRON_PYTHON) or sys.executable, scripts / "convert_megatron_to_hf.py"
            source = ["--megatron-ckpt-path", str(weights / "iter_0000000")]
        else:
            python, script = sys.executable, scripts / "convert_dcp_to_hf.py"
            source = ["--dcp-ckpt-path", str(weights)]
        config = str(checkpoint.path / "config.yaml")
        return [python, str(script), "--config", config, *source, "--hf-ckpt-path", str(path)]
