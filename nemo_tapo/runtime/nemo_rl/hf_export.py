"""Export the newest checkpoint as a Hugging Face directory with the converters of NeMo-RL's checkout.

A converter runs as a separate program: the workers' environment has Megatron, the driver's does not. This export has
not been tested on a GPU.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.runtime.nemo_rl.checkpoint_manager import find_newest_checkpoint
from nemo_tapo.runtime.nemo_rl.config.checkout import find_source
from nemo_tapo.utils.errors import RuntimeFailure

MEGATRON_PYTHON = "python-MegatronPolicyWorker"  # in NVIDIA's container: the Megatron workers' interpreter


@dataclass(frozen=True)
class HFConverter:
    """A callable that exports a model: `HFConverter(...)(path)` writes the directory `path`."""

    checkpoints: Path  # checkpointing.checkpoint_dir
    policy: Mapping[str, Any]  # NeMo-RL's section of that name

    def __call__(self, path: Path) -> None:
        """Write the directory `path`.

        Raises RuntimeFailure if the converter is missing or fails; the message has the command to run by hand.
        """
        command = self.command(path)
        process = subprocess.run(command, check=False, capture_output=True, text=True)
        if process.returncode != 0:
            raise RuntimeFailure(
                "training is done and its checkpoint saved, but NeMo-RL's converter failed "
                f"({process.stderr.strip()[-500:]}). By hand: {shlex.join(command)}"
            )

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
