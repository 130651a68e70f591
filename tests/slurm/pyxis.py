"""Stand in for Slurm's pyxis and enroot in tests: a container is a mount namespace of its own.

`make_image` writes a folder to be put before a job's PATH. Its `srun` takes pyxis's options away and calls the real
srun, which runs this file on every node. There each step has, as with enroot's settings, a /tmp of its own, no home
folder, and what --container-mounts names; the rest of the host is its image. Two steps share nothing, as with pyxis
unless one asks for the other's container by --container-name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OURS = ("--container-image=", "--container-mounts=", "--container-workdir=", "--no-container-mount-home")
INSIDE = "--inside"  # what this file is called with in the new mount namespace
STAGE = Path("/mnt")  # where folders wait while others are hidden


def make_image(folder: Path) -> Path:
    """Write `srun`, and the container's `python`: this one, fit for a run without NeMo-RL."""
    folder.mkdir()
    (folder / "srun").write_text(f'#!/bin/bash\nexec {sys.executable} {__file__} "$@"\n')
    (folder / "python").write_text(
        f'#!/bin/bash\n[[ " $* " != *check_container.py* ]] || exit 0\nexec {sys.executable} "$@"\n'
    )
    for file in folder.iterdir():
        file.chmod(0o755)
    return folder


def main() -> None:
    if sys.argv[1] == INSIDE:
        enter(sys.argv[2], sys.argv[3], sys.argv[4].split(":"), sys.argv[5:])
    arguments = sys.argv[1:]
    command = next(i for i, word in enumerate(arguments) if not word.startswith("-"))
    pyxis = dict(word.partition("=")[::2] for word in arguments[:command] if word.startswith(OURS))
    others = [word for word in arguments[:command] if not word.startswith(OURS)]
    if "--container-image" not in pyxis:
        os.execv("/usr/bin/srun", ["srun", *arguments])
    image = ":".join((sys.base_prefix, sys.prefix))  # the interpreter, which may be in the home folder
    inside = [sys.executable, __file__, INSIDE, pyxis["--container-mounts"], pyxis["--container-workdir"], image]
    unshare = ["unshare", "--mount", "--propagation", "private"]
    os.execv("/usr/bin/srun", ["srun", *others, *unshare, *inside, *arguments[command:]])


def enter(mounts: str, folder: str, image: list[str], command: list[str]) -> None:
    """Hide /tmp and the home folder, put the mounts into place, and become the command."""
    hidden = [Path("/tmp"), Path.home()]
    pairs = [(mount.split(":")[0], mount.split(":")[1]) for mount in mounts.split(",")]
    pairs += [(path, path) for path in image if any(place in Path(path).parents for place in hidden)]
    mount("-t", "tmpfs", "stage", str(STAGE))
    for i, (source, _) in enumerate(pairs):
        (STAGE / str(i)).mkdir()
        mount("--rbind", source, str(STAGE / str(i)))
    for place in hidden:
        mount("-t", "tmpfs", "fresh", str(place))
    for i, (_, target) in sorted(enumerate(pairs), key=lambda pair: pair[1][1]):  # outer ones first
        Path(target).mkdir(parents=True, exist_ok=True)
        mount("--move", str(STAGE / str(i)), target)
    os.chdir(folder)
    os.execvp(command[0], command)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main()
