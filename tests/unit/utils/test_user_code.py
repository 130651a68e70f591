"""Classes and functions that a setting names: found, imported once, and one sentence for everything that is wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nemo_tapo.utils.errors import get_first_line, is_full_disk, is_out_of_memory
from nemo_tapo.utils.user_code import describe_error, hash_code, load_object


def test_a_file_may_import_its_neighbours_and_is_imported_once(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_words.py").write_text("FIVE = 5\n")
    file = tmp_path / "words.py"
    file.write_text("import neighbour_of_words\ndef five(response, query):\n    return neighbour_of_words.FIVE\n")
    found = load_object(f"{file}:five", "task.reward")
    assert found("", None) == 5
    assert load_object(f"{file}:five", "task.reward") is found


def test_a_changed_file_is_imported_anew_and_has_another_digest(tmp_path: Path) -> None:
    file = tmp_path / "changing.py"
    file.write_text("ONE = 1\n")
    assert hash_code(f"{file}:ONE", "k") == hashlib.sha256(b"ONE = 1\n").hexdigest()[:16]
    assert load_object(f"{file}:ONE", "k") == 1
    file.write_text("ONE = 2\n")
    assert load_object(f"{file}:ONE", "k") == 2


def test_a_module_is_named_by_its_dotted_name() -> None:
    from nemo_tapo.types import Query

    assert load_object("nemo_tapo.types:Query", "task.target") is Query


@pytest.mark.parametrize(
    ("content", "target", "sentence"),
    [
        (None, "gone.py:f", r"there is no file .*gone\.py\."),
        ("", "file.py:f", r"file\.py has no f\."),
        ("def f(:", "file.py:f", r"file\.py cannot be imported: SyntaxError: .*\."),
        ("1 / 0", "file.py:f", r"file\.py cannot be imported: ZeroDivisionError: division by zero\."),
        ("raise SystemExit(3)", "file.py:f", r"file\.py cannot be imported: SystemExit: 3\."),
        ("class Own(Exception):\n    def __str__(self): return 1 / 0\nraise Own", "file.py:f", r"imported: Own\."),
        ("import no_such_thing", "file.py:f", r"imported: ModuleNotFoundError: No module named 'no_such_thing'"),
        (None, "no_such_package.words:f", r"there is no module no_such_package\.words"),
        (None, "file.py", r"names no function or class: write path/to/file\.py:name or package\.module:name\."),
        (None, "file.py:", r"names no function or class"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_with_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, target: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "file.py").write_text(content)
    with pytest.raises(ValueError, match=rf"^task\.reward = {target}.*{sentence}") as error:
        load_object(target, "task.reward")
    assert "\n" not in str(error.value)


class Mute(Exception):
    """An exception of a user that cannot say what it is."""

    def __init__(self, said: object) -> None:
        self.said = said

    def __str__(self) -> str:
        if isinstance(self.said, BaseException):
            raise self.said
        return self.said  # type: ignore[return-value]


@pytest.mark.parametrize("said", [ValueError("no"), SystemExit(3), None, 5, "", " \n", "..."])
def test_an_error_without_a_message_is_its_type(said: object) -> None:
    error = Mute(said)
    assert get_first_line(error) == describe_error(error) == "Mute"
    assert not is_full_disk(error) and not is_out_of_memory(error)


def test_whatever_a_file_raises_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("class Odd(BaseException): ...\nraise Odd('no')\n")
    with pytest.raises(ValueError, match=r"odd\.py cannot be imported: Odd: no"):
        load_object(f"{tmp_path / 'odd.py'}:score", "task.reward")
