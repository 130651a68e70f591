"""A full disk, wherever it is met: exit code 4, the file named, nothing half-written. /dev/full is a real one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from safetensors import SafetensorError

from nemo_tapo import cli
from nemo_tapo.utils.errors import DiskFull, is_full_disk, name_full_disk
from nemo_tapo.utils.files import replace_lines
from nemo_tapo.utils.jsonl import Appender, open_to_append
from tests.helpers.command import nemo_tapo

FULL = Path("/dev/full")


def test_a_line_that_finds_no_room_is_told_and_closing_the_file_fails_no_more(tmp_path: Path) -> None:
    lines = Appender(tmp_path / "metrics.jsonl")
    lines.append([{"step": 1}])
    lines._file.close()
    lines._file = open_to_append(FULL)
    with pytest.raises(DiskFull, match="no room on the disk for /dev/full; the lines in it are kept"):
        lines.append([{"step": 2}])
    lines.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_a_file_that_finds_no_room_is_as_it_was(tmp_path: Path) -> None:
    def lines() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "evaluation.json"
    file.write_text("before")
    with pytest.raises(DiskFull, match=r"evaluation\.json; it is as it was before"):
        replace_lines(file, lines())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("evaluation.json", "before")]


def test_safetensors_words_it_in_its_own_way() -> None:
    """As safetensors 0.8 says it on a disk of 64 KiB, which only root can mount."""
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert is_full_disk(error)
    assert not is_full_disk(ValueError("28 problems"))
    with pytest.raises(DiskFull, match="hf; the last good checkpoint is kept"):  # noqa: SIM117
        with name_full_disk("hf", "the last good checkpoint is kept"):
            raise error


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/report.html"), 4, "no room on the disk for out/report"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 4, "no room on the disk. Free some."),
        (
            OSError(errno.EMFILE, "Too many open files", "a"),
            1,
            "too many open files for a: raise the limit (ulimit -n)",
        ),
        (MemoryError(), 1, "there is not enough memory."),
    ],
)
def test_a_command_says_what_the_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, sentence: str
) -> None:
    def fail(arguments: object) -> NoReturn:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "show", replace(cli.COMMANDS["show"], run=fail))
    done = nemo_tapo("show", ".")
    assert done.returncode == code
    assert sentence in done.stderr
    assert "The same command goes on" in done.stderr or "the same command goes on" in done.stderr


def test_a_rank_without_room_is_a_full_disk_and_no_lost_rank() -> None:
    ray = pytest.importorskip("ray")
    from nemo_tapo.runtime.local.actor import LocalActor

    actor = LocalActor.__new__(LocalActor)
    actor._ranks, closed = [None], []
    actor.close = lambda: closed.append(True)  # type: ignore[method-assign]
    text = 'File "x", line 1\nsafetensors_rust.SafetensorError: I/O error: No space left on device (os error 28)'
    error = ray.exceptions.RayTaskError("save", text, RuntimeError("not pickled"), "t", 1, "127.0.0.1")
    failure = actor._make_failure({0: error}, [], "in save_checkpoint after 1.0 s")
    assert is_full_disk(failure) and isinstance(failure, OSError)
    assert closed
