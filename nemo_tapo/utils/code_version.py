"""Say which code made a run: `code.json` in its folder, one entry for each version that worked on it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from nemo_tapo import __version__
from nemo_tapo.utils.files import replace_text

CODE_FILE = "code.json"
SNAPSHOT = "COMMIT"  # tools/slurm/launch.py: the commit, then one line for each file that differs
ROOT = Path(__file__).parents[2]


def describe_code() -> dict[str, Any]:
    """Return {"version", "commit", "changed"} of the checkout that this package lies in; None without one.

    `changed` is true if files differ from the commit. In a job's snapshot the launcher's file COMMIT says both.
    """
    commit, changed = None, None
    if (ROOT / SNAPSHOT).is_file():
        first, *others = (ROOT / SNAPSHOT).read_text(encoding="utf-8").splitlines() or [""]
        if re.fullmatch("[0-9a-f]{40}", first):
            commit, changed = first, bool(others)
    elif (ROOT / ".git").exists():
        commit = _git("rev-parse", "HEAD")
        changed = None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {"version": __version__, "commit": commit, "changed": changed}


def record_code(folder: Path, command: str) -> None:
    """Add this code to the folder's code.json, unless its newest entry says the same."""
    entry = {"command": command, **describe_code()}
    known = read_code(folder)
    if known[-1:] != [entry]:
        replace_text(folder / CODE_FILE, json.dumps([*known, entry], indent=1) + "\n")


def read_code(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of the folder's code.json, oldest first; [] if there is none or it does not parse."""
    try:
        entries = json.loads((folder / CODE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
