"""Put the example configs and the tiny models into a wheel, so that `nemo-tapo demo` works without the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """Copies examples/ and assets/ to nemo_tapo/data in the build folder; an editable install reads the checkout."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        data = Path(self.build_lib) / "nemo_tapo" / "data"
        shutil.rmtree(data, ignore_errors=True)
        for name in ("examples", "assets"):
            shutil.copytree(name, data / name, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithData})
