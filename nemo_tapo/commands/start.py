"""The commands to begin with: `demo` runs the main job as it is, `init` makes a folder for a project of one's own."""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.resources import files
from pathlib import Path

from nemo_tapo.utils.files import make_building_folder, make_output_folder, publish_folder
from nemo_tapo.utils.resources import find_resource

DEMO, DEMO_MODEL = "examples/configs/tapo-tiny-1n0g.yaml", "assets/tiny-base"
PROJECT_MODEL = "assets/tiny-coldstart"
PROJECT_FILES = ("config.yaml", "task.py", "README.md")


def find_demo_arguments() -> tuple[Path, list[str]]:
    """Return the demo's config file and the setting that names its model, wherever this package is installed."""
    return find_resource(DEMO), [f"model.path={json.dumps(str(find_resource(DEMO_MODEL)))}"]


def add_init_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the argument of `init`."""
    sub.add_argument("folder", type=Path, metavar="NAME", help="a new folder")


def run_init(arguments: argparse.Namespace) -> int:
    """Make the folder and return 0. Raises ValueError if it is there already."""
    folder: Path = arguments.folder
    if folder.exists() or not folder.name:
        raise ValueError(f"{folder} is there already: `init` makes a new folder, name another.")
    if not folder.name.isprintable():
        raise ValueError(f"{folder.name!r} is no name for a folder: it has control characters.")
    make_output_folder(folder.parent)
    building = make_building_folder(folder)
    for name in PROJECT_FILES:
        text = (files("nemo_tapo.commands") / "project" / f"{name}.txt").read_text(encoding="utf-8")
        (building / name).write_text(text.replace("@NAME@", folder.name), encoding="utf-8")
    shutil.copytree(find_resource(PROJECT_MODEL), building / "model")
    publish_folder(folder, building)
    print(f"{folder}: {', '.join(PROJECT_FILES)} and a tiny model to try them with. Start with {folder / 'README.md'}.")
    return 0
