"""`nemo-tapo` called from a test within its own process, where nothing is to be killed: seconds less than a process."""

from __future__ import annotations

import signal
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from nemo_tapo.cli import main


def nemo_tapo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a process would have returned and printed. What the command does to its signals is undone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
            try:
                code = main(arguments)
            except SystemExit as end:  # argparse
                code = end.code if isinstance(end.code, int) else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())
