"""Read the rows of a Hugging Face data set from the hub, its cache, or a folder with the layout of its repository.

The repository is downloaded at one commit, so all three end as a folder. The `datasets` library reads that folder: it
knows the README's `configs:` and the conventions that name files after splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.row_files import RawDataset
from nemo_tapo.utils.errors import get_first_line

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_SECONDS = 10.0  # for the first request; the library's own timeouts apply to the download
SITE = "huggingface.co"


@dataclass(frozen=True)
class LocalRepository:
    """A data set's repository on this machine."""

    folder: Path
    description: str  # for the user
    notes: tuple[str, ...] = ()  # sentences for the user


def read_hub(cfg: DatasetConfig, key: str) -> RawDataset:
    """Read the rows of the configurations, one after the other. Error messages name the config key `key`.

    Raises ValueError with a sentence if the revision is missing, the data set, configuration or split does not exist,
    or the hub cannot be reached.
    """
    require_library(key)
    source = locate_repository(cfg, key)
    names = list_configs(source, cfg, key)
    chosen = cfg.configs or tuple(names)
    return RawDataset(
        f"{source.description}, {' + '.join(chosen)}, {cfg.split}",
        list(_stream_rows(source, chosen, cfg.split, key)),
        other_configs=tuple(n for n in names if n not in chosen),
        notes=source.notes,
    )


def require_library(key: str) -> None:
    """Raise ValueError if `datasets` is not installed: it is an optional dependency that plain files do not need."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{key}.hub: reading Hugging Face data sets takes the `datasets` library: pip install 'nemo-tapo[data]'."
        ) from None
    datasets.disable_progress_bars()


def locate_repository(cfg: DatasetConfig, key: str) -> LocalRepository:
    """Find the repository: the folder `hub` if there is one, else in the cache, else downloaded.

    Raises ValueError with a sentence if it cannot be found.
    """
    assert cfg.hub is not None
    folder = Path(cfg.hub).expanduser()
    if folder.is_dir():
        return open_local_copy(folder.resolve(), cfg.revision, key)
    if cfg.hub.startswith((".", "/", "~")) or cfg.hub.count("/") != 1:
        raise ValueError(f"{key}.hub: '{cfg.hub}' is neither a folder nor the name of a data set (owner/name).")
    if cfg.revision is None:
        raise ValueError(explain_missing_revision(cfg.hub, key))
    if COMMIT.fullmatch(cfg.revision):
        return fetch_commit(cfg.hub, cfg.revision, key)
    return fetch_branch(cfg.hub, cfg.revision, key)


def open_local_copy(folder: Path, revision: str | None, key: str) -> LocalRepository:
    """Open a copied repository.

    Raises ValueError if `hf download` recorded a commit in the folder that differs from the pinned revision.
    """
    commit = find_commit(folder)
    wanted = revision if revision and COMMIT.fullmatch(revision) else None
    if wanted and commit and commit != wanted:
        raise ValueError(
            f"{key}: the folder {folder} holds commit {commit}, {key}.revision wants {wanted}. "
            "Fetch that one, or change the revision."
        )
    note = (f"{folder} does not say which commit it holds; {key}.revision could not be checked.",)
    description = f"{folder} at {commit}" if commit else str(folder)
    return LocalRepository(folder, description, note if wanted and not commit else ())


def find_commit(folder: Path) -> str | None:
    """Return the commit of a folder made by `hf download --local-dir`, or of a snapshot in the hub's cache, or None."""
    if COMMIT.fullmatch(folder.name):
        return folder.name
    for file in sorted((folder / ".cache" / "huggingface" / "download").rglob("*.metadata")):
        first = file.read_text(errors="replace").split("\n", 1)[0].strip()
        if COMMIT.fullmatch(first):
            return first
    return None


def fetch_commit(name: str, commit: str, key: str) -> LocalRepository:
    """Return the repository at a commit. A commit cannot change, so a cached copy needs no network."""
    folder = find_in_cache(name, commit)
    if folder is None:
        resolve_commit(name, commit, key)  # one quick request fails sooner than the download with its retries
        folder = download(name, commit, key)
    return LocalRepository(folder, f"{name} at {commit}")


def fetch_branch(name: str, revision: str, key: str) -> LocalRepository:
    """Return the repository at a branch or tag, with a note that names its present commit and how to pin it."""
    try:
        resolve_commit(name, revision, key)
    except ValueError:
        folder = find_in_cache(name, revision)
        if folder is None:
            raise
        note = (
            f"{key}: {SITE} cannot be asked; '{revision}' was {folder.name} when it was fetched, write that to pin it."
        )
    else:
        folder = download(name, revision, key)  # by the branch's name, so that the cache records it
        note = f"{key}.revision: '{revision}' is {folder.name} today and may move; write that to pin it."
    return LocalRepository(folder, f"{name} at {folder.name}", (note,))


def find_in_cache(name: str, revision: str) -> Path | None:
    """Return the folder of the whole repository in the hub's cache, or None if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def resolve_commit(name: str, revision: str, key: str) -> str:
    """Return the commit of a revision, with one request and no retries.

    Raises ValueError with a sentence if the data set or the revision does not exist, asks for a login, or the hub
    cannot be reached.
    """
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
    except Exception as error:  # versions of huggingface_hub use different HTTP libraries with their own errors
        raise ValueError(explain_offline(name, revision, key, error)) from None
    assert commit is not None
    return commit


def download(name: str, revision: str, key: str) -> Path:
    """Download the repository at `revision` into the hub's cache. Return its folder, whose name is the commit.

    Raises ValueError with a sentence if that fails.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except Exception as error:  # as in `resolve_commit`; also a full disk
        raise ValueError(explain_offline(name, revision, key, error)) from None


def explain_offline(name: str, revision: str, key: str, error: Exception) -> str:
    """Return an error message: which files to copy from a machine with internet access, and where to put them."""
    folder = "data/" + name.split("/")[-1]
    kind, text = type(error).__name__, get_first_line(error)[:200]
    return (
        f"{key}.hub: '{name}' is not on this machine, and {SITE} did not give it "
        f"({kind if text == kind else f'{kind}: {text}'}). On a machine with internet: "
        f"hf download {name} --repo-type dataset --revision {revision} --local-dir {folder}. Bring that folder here "
        f"and add {key}.hub={folder}; or bring its rows as one JSONL or Parquet file and add {key}.hub=null "
        f"{key}.path=FILE."
    )


def explain_missing_revision(name: str, key: str) -> str:
    """Return an error message that says what to set; it names the newest commit if the hub can be reached."""
    sentence = f"{key}.revision is missing: the rows of '{name}' may change under a run."
    try:
        commit = resolve_commit(name, "main", key)
    except ValueError:  # offline or not found: the message then has no example
        return (
            f"{sentence} Write its commit (40 hexadecimal digits, on its page under Files), or 'main' for the newest."
        )
    return f"{sentence} Write {key}.revision={commit}, the newest today, or 'main'."


def list_configs(source: LocalRepository, cfg: DatasetConfig, key: str) -> list[str]:
    """Return the names of the set's configurations.

    Raises ValueError if the folder is not a data set, if a configuration in `cfg` does not exist, or if the set has
    several and `cfg` names none.
    """
    import datasets

    try:
        names = list(datasets.get_dataset_config_names(str(source.folder)))
    except Exception as error:  # the library raises many types: no data files, invalid YAML, ...
        raise ValueError(f"{key}.hub: {source.folder} cannot be read as a data set: {get_first_line(error)}") from None
    unknown = [c for c in cfg.configs if c not in names]
    if unknown:
        raise ValueError(f"{key}.configs: {source.description} has no '{unknown[0]}', it has {', '.join(names)}.")
    if not cfg.configs and len(names) > 1:
        raise ValueError(
            f"{key}.configs: {source.description} has {len(names)} configurations, {', '.join(names)}. "
            f"Name those that are meant; parts of one benchmark all of them: {key}.configs=[{','.join(names)}]."
        )
    return names


def _stream_rows(source: LocalRepository, chosen: tuple[str, ...], split: str, key: str) -> Iterator[dict[str, Any]]:
    """Stream the rows: nothing is written to the library's own cache, so nothing stale is ever read from it."""
    import datasets

    for name in chosen:
        try:
            splits = datasets.get_dataset_split_names(str(source.folder), name)
            rows = (
                datasets.load_dataset(str(source.folder), name, split=split, streaming=True) if split in splits else ()
            )
            yield from rows
        except Exception as error:  # as in `list_configs`
            raise ValueError(
                f"{key}: {source.description}, {name}: the rows cannot be read: {get_first_line(error)}."
            ) from None
        if split not in splits:
            raise ValueError(
                f"{key}.split: {source.description}, {name} has no split '{split}', it has {', '.join(splits)}."
            )
