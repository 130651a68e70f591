"""Load a class or a function that a setting names: `path/to/file.py:name` or `package.module:name`.

Everything that is wrong with it is a ValueError with one sentence that begins with the setting's key.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_tapo.utils.errors import get_first_line
from nemo_tapo.utils.files import hash_json, sha256

DIGITS = 16  # of a digest that a person may have to read


def split_target(target: str, key: str) -> tuple[str, str]:
    """Split a target into its file or module and the name in it. Raises ValueError if it is not of that form.

    >>> split_target("rewards/words.py:score", "task.reward"), split_target("mine.words:Words", "task.target")
    (('rewards/words.py', 'score'), ('mine.words', 'Words'))
    >>> split_target("words.py", "task.reward")
    Traceback (most recent call last):
    ValueError: task.reward = words.py names no function or class: write path/to/file.py:name or package.module:name.
    """
    where, _, name = target.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(
            f"{key} = {target} names no function or class: write path/to/file.py:name or package.module:name."
        )
    return where, name


def find_file(target: str, key: str) -> Path:
    """Return the file that defines a target. Raises ValueError if there is none."""
    where, _ = split_target(target, key)
    if where.endswith(".py"):
        path = Path(where).expanduser()
        if not path.is_file():
            raise ValueError(f"{key} = {target}: there is no file {path}.")
        return path
    _add_import_path(Path.cwd())
    try:
        found = importlib.util.find_spec(where)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{key} = {target}: there is no module {where} ({get_first_line(error)}).") from None
    if found is None or found.origin is None:
        raise ValueError(f"{key} = {target}: there is no module {where}.")
    return Path(found.origin)


def hash_code(target: str, key: str) -> str:
    """Return a digest of the file that defines a target; what that file imports is not in it."""
    return sha256(find_file(target, key))[:DIGITS]


def load_object(target: str, key: str) -> Any:
    """Import the file or module of a target and return what has its name there.

    A file is imported once, unless it changes; its folder is searched for what it imports.
    """
    path, (where, name) = find_file(target, key), split_target(target, key)
    try:
        module = _import_file(path.resolve()) if where.endswith(".py") else importlib.import_module(where)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's file raises, as SystemExit, concerns that file
        raise ValueError(f"{key} = {target}: {where} cannot be imported: {describe_error(error)}.") from None
    if not hasattr(module, name):
        raise ValueError(f"{key} = {target}: {where} has no {name}.")
    return getattr(module, name)


def describe_error(error: BaseException) -> str:
    """Return an exception as `Type: message`, on one line.

    >>> describe_error(ValueError("no number.\\nMore about it."))
    'ValueError: no number'
    """
    first = get_first_line(error)
    return first if first == type(error).__name__ else f"{type(error).__name__}: {first}"


def _import_file(path: Path) -> ModuleType:
    name = f"user_code_{hash_json([str(path), sha256(path)])[:DIGITS]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    _add_import_path(path.parent)
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(found)  # dataclasses look their module up there
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_import_path(folder: Path) -> None:
    """Search a folder for modules after all others, so that nothing installed is hidden."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
