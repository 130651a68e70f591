"""A Hugging Face directory of the newest checkpoint, by the converters of NeMo-RL's own checkout.

They run as a program of their own: the driver's environment has no Megatron, the workers' has. Not run on a GPU.
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

from nemo_tapo.runtime.nemo_rl.checkpoint_manager import newest
from nemo_tapo.runtime.nemo_rl.config.checkout import find_source
from nemo_tapo.utils.errors import RuntimeFailure

MEGATRON_PYTHON = "python-MegatronPolicyWorker"  # in NVIDIA's container: the Megatron workers' interpreter


@dataclass(frozen=True)
class Converter:
    """`Converter(...)(path)` writes the directory."""

    checkpoints: Path
    policy: Mapping[str, Any]

    def __call__(self, path: Path) -> None:
        """RuntimeFailure, with the command to run by hand, if the converter is not there or fails."""
        command = self.command(path)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeFailure(
                "training is done and its checkpoint saved, but NeMo-RL's converter failed "
                f"({done.stderr.strip()[-500:]}). By hand: {shlex.join(command)}"
            )

    def command(self, path: Path) -> list[str]:
        """The converter's command line for the newest checkpoint."""
        found, source = newest(self.checkpoints), find_source()
        assert found is not None, "export comes after the last step's checkpoint"
        if source is None:
            raise RuntimeFailure(
                f"training is done and {found.path} saved; to export it, NeMo-RL's examples/converters are needed: set "
                "NEMO_RL_SRC to its checkout."
            )
        weights, scripts = found.path / "policy" / "weights", source / "examples" / "converters"
        if (self.policy.get("megatron_cfg") or {}).get("enabled"):
            python = shutil.which(MEGATRON_PYTHON) or sys.executable
            given = ["--megatron-ckpt-path", str(weights / "iter_0000000")]
            script = scripts / "convert_megatron_to_hf.py"
        else:
            python, script, given = sys.executable, scripts / "convert_dcp_to_hf.py", ["--dcp-ckpt-path", str(weights)]
        config = str(found.path / "config.yaml")
        return [python, str(script), "--config", config, *given, "--hf-ckpt-path", str(path)]
