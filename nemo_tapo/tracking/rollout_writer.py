"""Write every rollout of a run into `rollouts/` in its folder, compressed and bounded (rollout_store.py reads it)."""

from __future__ import annotations

import errno
import gzip
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nemo_tapo.tracking.rollout_store import (
    INDEX_FILE,
    ROLLOUTS_FOLDER,
    StepPlace,
    read_index,
    summarise_query,
)
from nemo_tapo.utils.errors import DiskFull
from nemo_tapo.utils.files import refuse_foreign_link
from nemo_tapo.utils.jsonl import Appender, Record, encode_line

SEGMENTS = 8  # about so many share the bound, so that an eighth is deleted at a time
COMPRESSION = 4  # of 1 to 9: of real responses 94 MB/s and 22% of their size are left; 6 has 42 MB/s and 21%
COMPRESSORS = min(os.cpu_count() or 1, 8)  # threads


class RolloutWriter:
    """Appends steps. Opening it removes what a killed run left behind the last step that counts."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Write into `<folder>/rollouts`, at most about `max_bytes` of compressed records.

        A single step may be larger than the bound: the newest segment always stays.
        """
        if max_bytes <= 0:
            raise ValueError(f"max_bytes is {max_bytes}; it must be more than 0.")
        self._folder, self._max_bytes = folder / ROLLOUTS_FOLDER, max_bytes
        self._index = Appender(self._folder / INDEX_FILE)
        self._set_aside_unindexed()
        self._last = self._discard_uncommitted(folder)

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about a damaged index that was found."""
        return self._index.notes

    def write(self, step: int, records: Iterable[Record]) -> None:
        """Append a step: one record a query, as rollout_store.py describes them. A few are in memory at a time.

        Raises ValueError if this step or a later one is there already, DiskFull if there is no room.
        """
        if step <= self._index.last_step:
            raise ValueError(
                f"{self._folder} has steps up to {self._index.last_step} already, so step {step} cannot be added."
            )
        last = self._last
        begin = last.offset + last.size if last else 0
        segment = last.segment if last else ""
        if not segment or begin >= self._max_bytes // SEGMENTS:
            segment, begin = f"{step:08}.jsonl.gz", 0
        try:
            summaries, size, contents = self._append_members(segment, begin, step, records)
            self._last = StepPlace(step, segment, begin, size, contents, len(summaries))
            place = {"step": step, "segment": segment, "offset": begin, "bytes": size, "contents_bytes": contents}
            self._index.append([{**place, "queries": len(summaries), "at": round(time.time(), 3)}])
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            what = f"the rollouts of step {step} in {self._folder}"
            room = f"no room on the disk for {what}: free some, or lower rollouts_gib"
            raise DiskFull(error.errno, room) from None
        self._rotate()

    def truncate_after(self, step: int) -> int:
        """Drop the steps after `step`, for a resumed run; return how many were dropped."""
        dropped = self._index.truncate_after(step)
        self._last = self._discard_uncommitted(self._folder.parent)
        return dropped

    def close(self) -> None:
        self._index.close()

    def _append_members(
        self, segment: str, begin: int, step: int, records: Iterable[Record]
    ) -> tuple[list[Record], int, int]:
        """Write to the disk what the index will say is there; bytes from `begin` on are of no step that counts.

        Returns the queries' summaries, and the bytes of all members and of the last.
        """
        summaries, offset = [], begin
        with open(self._folder / segment, "ab", opener=refuse_foreign_link) as file:
            file.truncate(begin)
            for record, member in compress_in_order({"kind": "query", "step": step, **each} for each in records):
                file.write(member)
                summaries.append({**summarise_query(record), "offset": offset, "bytes": len(member)})
                offset += len(member)
            contents = compress({"kind": "contents", "step": step, "queries": summaries})
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        return summaries, offset + len(contents) - begin, len(contents)

    def _rotate(self) -> None:
        """Delete the oldest segments until the rest is within the bound."""
        segments = self._list_segments()
        total = sum(path.stat().st_size for path in segments)
        for path in segments[:-1]:
            if total <= self._max_bytes:
                break
            total -= path.stat().st_size
            path.unlink()

    def _set_aside_unindexed(self) -> None:
        """Rename segments of which no index tells anything: it may have been lost, so they are not deleted."""
        for path in self._list_segments() if self._index.last_step < 0 else ():
            aside = path.replace(path.with_name(f"{path.name}.unindexed"))
            self._index.notes.append(f"{path} is not in {self._index.path}; it is kept as {aside}")

    def _discard_uncommitted(self, folder: Path) -> StepPlace | None:
        """Delete and cut segments to what the index holds; return the place after which the next step is written.

        That is none, and the next step begins a segment, if the last one is gone or shorter than the index says.
        """
        steps = list(read_index(folder).steps.values())
        last = steps[-1] if steps else None
        whole = False
        for path in self._list_segments():
            if last is None or path.name > last.segment:
                path.unlink()
            elif path.name == last.segment:
                whole = path.stat().st_size >= last.offset + last.size
                if whole:
                    os.truncate(path, last.offset + last.size)
        return last if whole else None

    def _list_segments(self) -> list[Path]:
        """Return the segments, oldest first."""
        return sorted(self._folder.glob("*.jsonl.gz"))


def compress_in_order(records: Iterable[Record]) -> Iterator[tuple[Record, bytes]]:
    """Yield each record with its gzip member, in order; a few are compressed side by side."""
    waiting: deque[tuple[Record, Future[bytes]]] = deque()
    with ThreadPoolExecutor(COMPRESSORS) as pool:  # zlib works beside other threads
        for record in records:
            waiting.append((record, pool.submit(compress, record)))
            if len(waiting) > 2 * COMPRESSORS:
                first, member = waiting.popleft()
                yield first, member.result()
        for first, member in waiting:
            yield first, member.result()


def compress(record: Record) -> bytes:
    """Return a record's line as a gzip member."""
    return gzip.compress(encode_line(record), COMPRESSION, mtime=0)
