"""The command `watch`: serve the page that follows runs while they train."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_PORT = 6166


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `watch`."""
    sub.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="run folders, or folders with runs in them")
    sub.add_argument("--port", type=int, help=f"of this machine (default: {DEFAULT_PORT}, or a free one)")


def watch(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C and return 0. Raises ValueError if a folder or the port cannot be used."""
    from nemo_tapo.watch.serve import serve

    for folder in arguments.folders:
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}: give the `output` of a run, which may still be at work.")
    serve(arguments.folders, arguments.port, DEFAULT_PORT)
    return 0
