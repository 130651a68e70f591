"""Rows of a Hugging Face data set, from the hub, its cache, or a folder laid out like its repository.

Downloaded is the repository at one commit; then all three are a folder, read by the `datasets` library, which knows
the README's `configs:` and the ways to name files after splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.files import Opened

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_SECONDS = 10.0  # for the first answer; later on the library's own patience holds
SITE = "huggingface.co"


@dataclass(frozen=True)
class Source:
    """A data set's repository on this machine."""

    folder: Path
    words: str  # what the user is told
    notes: tuple[str, ...] = ()


def open_hub(cfg: DatasetConfig, key: str) -> Opened:
    """The rows of the configurations, one after the other. `key` is the setting that errors speak of.

    Raises ValueError with a sentence: no revision, no such data set, configuration or split, no way to the hub.
    """
    require_library(key)
    source = locate(cfg, key)
    names = configurations(source, cfg, key)
    chosen = cfg.configs or tuple(names)
    return Opened(
        f"{source.words}, {' + '.join(chosen)}, {cfg.split}",
        list(_rows(source, chosen, cfg.split, key)),
        others=tuple(n for n in names if n not in chosen),
        notes=source.notes,
    )


def require_library(key: str) -> None:
    """`datasets` is an extra: plain files need none of it."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{key}.hub: reading Hugging Face data sets takes the `datasets` library: pip install 'nemo-tapo[data]'."
        ) from None
    datasets.disable_progress_bars()


def locate(cfg: DatasetConfig, key: str) -> Source:
    """The repository's folder: `hub` itself if that is one, else the cache, else downloaded."""
    assert cfg.hub is not None
    folder = Path(cfg.hub).expanduser()
    if folder.is_dir():
        return local_copy(folder.resolve(), cfg.revision, key)
    if cfg.hub.startswith((".", "/", "~")) or cfg.hub.count("/") != 1:
        raise ValueError(f"{key}.hub: '{cfg.hub}' is neither a folder nor the name of a data set (owner/name).")
    if cfg.revision is None:
        raise ValueError(without_revision(cfg.hub, key))
    if COMMIT.fullmatch(cfg.revision):
        return pinned(cfg.hub, cfg.revision, key)
    return branch(cfg.hub, cfg.revision, key)


def local_copy(folder: Path, revision: str | None, key: str) -> Source:
    """A copied repository. Where `hf download` left its commit, a pinned revision is held against it."""
    commit = commit_of(folder)
    wanted = revision if revision and COMMIT.fullmatch(revision) else None
    if wanted and commit and commit != wanted:
        raise ValueError(
            f"{key}: the folder {folder} holds commit {commit}, {key}.revision wants {wanted}. "
            "Fetch that one, or change the revision."
        )
    note = (f"{folder} does not say which commit it holds; {key}.revision could not be checked.",)
    words = f"{folder} at {commit}" if commit else str(folder)
    return Source(folder, words, note if wanted and not commit else ())


def commit_of(folder: Path) -> str | None:
    """The commit of a folder that `hf download --local-dir` made, or of a snapshot in the hub's cache."""
    if COMMIT.fullmatch(folder.name):
        return folder.name
    for file in sorted((folder / ".cache" / "huggingface" / "download").rglob("*.metadata")):
        first = file.read_text(errors="replace").split("\n", 1)[0].strip()
        if COMMIT.fullmatch(first):
            return first
    return None


def pinned(name: str, commit: str, key: str) -> Source:
    """A commit cannot change: what the cache holds of it needs no network."""
    words = f"{name} at {commit}"
    folder = cached(name, commit)
    if folder is None:
        resolve(name, commit, key)  # one quick question before the download, with all its retries
        folder = download(name, commit, key)
    return Source(folder, words)


def branch(name: str, revision: str, key: str) -> Source:
    """A branch or tag: the user is told its commit of today, and how to pin it."""
    try:
        resolve(name, revision, key)
    except ValueError:
        folder = cached(name, revision)
        if folder is None:
            raise
        told = (
            f"{key}: {SITE} cannot be asked; '{revision}' was {folder.name} when it was fetched, write that to pin it."
        )
    else:
        folder = download(name, revision, key)  # by the branch's name, which the cache then knows
        told = f"{key}.revision: '{revision}' is {folder.name} today and may move; write that to pin it."
    return Source(folder, f"{name} at {folder.name}", (told,))


def cached(name: str, revision: str) -> Path | None:
    """The whole repository in the hub's cache, None if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def resolve(name: str, revision: str, key: str) -> str:
    """The commit of a revision, by one request without retries."""
    from huggingface_hub import HfApi, errors

    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except errors.GatedRepoError:
        raise ValueError(
            f"{key}.hub: '{name}' asks to accept its terms on {SITE} and to log in: hf auth login."
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{key}.revision: '{name}' has no revision '{revision}'.") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{key}.hub: {SITE} has no data set '{name}', or it is a private one (hf auth login)."
        ) from None
    except Exception as error:  # every HTTP library that huggingface_hub has been built on raises its own
        raise ValueError(offline(name, revision, key, error)) from None
    assert commit is not None
    return commit


def download(name: str, revision: str, key: str) -> Path:
    """The repository at `revision` in the hub's cache; the folder's name is the commit."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except Exception as error:  # as in `resolve`; also a full disk
        raise ValueError(offline(name, revision, key, error)) from None


def offline(name: str, revision: str, key: str, error: Exception) -> str:
    """Which file to bring from a machine with internet, and where to put it."""
    folder = "data/" + name.split("/")[-1]
    return (
        f"{key}.hub: '{name}' is not on this machine, and {SITE} did not give it "
        f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). On a machine with internet: "
        f"hf download {name} --repo-type dataset --revision {revision} --local-dir {folder}. Bring that folder here "
        f"and add {key}.hub={folder}; or bring its rows as one JSONL or Parquet file and add {key}.hub=null "
        f"{key}.path=FILE."
    )


def without_revision(name: str, key: str) -> str:
    """What to write; online, with the commit of today."""
    sentence = f"{key}.revision is missing: the rows of '{name}' may change under a run."
    try:
        commit = resolve(name, "main", key)
    except ValueError:  # offline or not found: only the example is lost
        return (
            f"{sentence} Write its commit (40 hexadecimal digits, on its page under Files), or 'main' for the newest."
        )
    return f"{sentence} Write {key}.revision={commit}, the newest today, or 'main'."


def configurations(source: Source, cfg: DatasetConfig, key: str) -> list[str]:
    """The set's configurations. Raises ValueError if a wanted one is not among them, or none of several is named."""
    import datasets

    try:
        names = list(datasets.get_dataset_config_names(str(source.folder)))
    except Exception as error:  # of the library, in many kinds: no data files, YAML that does not parse
        raise ValueError(f"{key}.hub: {source.folder} cannot be read as a data set: {_first_line(error)}") from None
    unknown = [c for c in cfg.configs if c not in names]
    if unknown:
        raise ValueError(f"{key}.configs: {source.words} has no '{unknown[0]}', it has {', '.join(names)}.")
    if not cfg.configs and len(names) > 1:
        raise ValueError(
            f"{key}.configs: {source.words} has {len(names)} configurations, {', '.join(names)}. Name those that are "
            f"meant; parts of one benchmark all of them: {key}.configs=[{','.join(names)}]."
        )
    return names


def _rows(source: Source, chosen: tuple[str, ...], split: str, key: str) -> Iterator[dict[str, Any]]:
    """Streamed: nothing is written to the library's own cache, so nothing stale is ever read."""
    import datasets

    for name in chosen:
        try:
            splits = datasets.get_dataset_split_names(str(source.folder), name)
            rows = (
                datasets.load_dataset(str(source.folder), name, split=split, streaming=True) if split in splits else ()
            )
            yield from rows
        except Exception as error:  # as in `configurations`
            raise ValueError(f"{key}: {source.words}, {name}: the rows cannot be read: {_first_line(error)}.") from None
        if split not in splits:
            raise ValueError(f"{key}.split: {source.words}, {name} has no split '{split}', it has {', '.join(splits)}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
