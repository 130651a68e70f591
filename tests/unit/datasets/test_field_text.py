"""Fields of rows as text: numbers exactly, gaps that were printed, backslashes that JSON swallowed."""

from __future__ import annotations

import copy
import json
import pickle
from decimal import Decimal
from typing import Any

import pytest

from nemo_tapo.datasets.field_text import LONGEST_TEXT, FieldFault, format_number, parse_text
from nemo_tapo.datasets.read import parse_answer
from nemo_tapo.datasets.row_files import load_json


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("2", "2"), ("-3", "-3"), ("72.0", "72"), ("0.50", "0.5"), ("-0.0", "0"), ("100.0", "100"),
        ("1e-05", "0.00001"), ("1.5e-7", "0.00000015"), ("-2.5E-3", "-0.0025"), ("1e22", "1" + "0" * 22),
        ("1e23", "1" + "0" * 23),  # the float nearest to it is 99999999999999991611392
        ("1.25e+20", "125" + "0" * 18), ("0.1", "0.1"), ("3.141592653589793", "3.141592653589793"),
        ("123456789012345678901234567890", "123456789012345678901234567890"), ("1" + "0" * 400, "1" + "0" * 400),
        ("5e-324", "0." + "0" * 323 + "5"), ("1e-400", "0." + "0" * 399 + "1"),
        ("12345678901234567890.5", "12345678901234567890.5"), ("0.1000000000000000055", "0.1000000000000000055"),
        ("9007199254740993.0", "9007199254740993"),
    ],
)  # fmt: skip
def test_a_number_in_json_is_its_digits(written: str, text: str) -> None:
    assert parse_text(load_json(written)) == text


def test_a_number_in_json_is_a_float_to_everybody_else() -> None:
    row = load_json('{"answer": 12345678901234567890.5, "more": [1e-400, 0.5]}')
    assert type(row["answer"]) is not float and row == {"answer": 12345678901234567890.5, "more": [0.0, 0.5]}
    assert json.dumps(row) == '{"answer": 1.2345678901234567e+19, "more": [0.0, 0.5]}'
    for copied in (copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        assert repr(copied) == repr(row) and parse_text(copied["answer"]) == "12345678901234567890.5"


@pytest.mark.parametrize("written", ["1e-999999999", "0e-999999999", "1e-" + "9" * 30])
def test_a_number_with_endless_digits_is_too_long(written: str) -> None:
    fault = parse_text(load_json(written))
    assert isinstance(fault, FieldFault) and fault.reason == "too_long"


def test_a_decimal_of_a_table_is_its_digits() -> None:
    assert [format_number(Decimal(t)) for t in ("0.10", "1E+3", "-7.250", "0.00")] == ["0.1", "1000", "-7.25", "0"]


def test_an_integer_with_more_digits_than_python_converts_is_text() -> None:
    digits = "7" * 5000
    assert load_json(f'[{{"answer": {digits}}}, {{"answer": 5}}]') == [{"answer": digits}, {"answer": 5}]
    assert load_json(f"-{digits}") == f"-{digits}"


@pytest.mark.parametrize(
    "written",
    ["NaN", "Infinity", "-Infinity", "1e400", '"nan"', '"NaN"', '"None"', '"null"', '" nan "', '"<NA>"', '"NaT"',
     '"inf"', '"-inf"', "null", '""', '" \\t"'],
)  # fmt: skip
def test_what_stands_for_nothing_is_missing(written: str) -> None:
    fault = parse_text(json.loads(written))
    assert isinstance(fault, FieldFault) and fault.reason == "missing"
    if written not in ("null", '""', '" \\t"'):
        assert json.loads(written) is not None and fault.detail.startswith(("it is the number ", "it is the text "))


@pytest.mark.parametrize(
    "text", ["none", "None of these", "nancy", "infinity", "Infinity", "\\infty", "Nan 5", "inf x"]
)
def test_answers_that_look_like_a_gap_stay(text: str) -> None:
    assert parse_text(text) == text


def test_a_question_may_be_any_word_but_a_gap() -> None:
    assert parse_text("inf", numbers=False, short=False) == "inf"
    assert parse_text("nan", numbers=False, short=False) == FieldFault("missing", "it is the text 'nan'")


@pytest.mark.parametrize("value", [True, False, [1], {"a": 1}, b"5"])
def test_what_is_no_text_is_said(value: Any) -> None:
    assert parse_text(value) == FieldFault("not_text", type(value).__name__)


def test_limits_of_a_text() -> None:
    assert parse_text("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    for value, reason in (("x" * (LONGEST_TEXT + 1), "too_long"), ("\ud83d", "not_unicode"), (5, "not_text")):
        fault = parse_text(value, numbers=False)
        assert isinstance(fault, FieldFault) and fault.reason == reason


@pytest.mark.parametrize(
    ("written", "detail"),
    [
        (r"2\frac{1}{2}", r"a form feed and 'rac', where \frac was meant; in JSON it is \\frac"),
        (r"\beta", r"a backspace and 'eta', where \beta was meant; in JSON it is \\beta"),
        (r"\binom{5}{2}", r"a backspace and 'inom', where \binom was meant; in JSON it is \\binom"),
        (r"3\times 10^5", r"a tab and 'imes', where \times was meant; in JSON it is \\times"),
        (r"\theta=\frac12", r"a tab and 'heta', where \theta was meant; in JSON it is \\theta"),
        (r"5\text{ cm}", r"a tab and 'ext', where \text was meant; in JSON it is \\text"),
        (r"x\neq 5", r"a line feed and 'eq', where \neq was meant; in JSON it is \\neq"),
        (r"(1, 2\right)", r"a carriage return and 'ight', where \right was meant; in JSON it is \\right"),
    ],
)
def test_a_latex_command_with_one_backslash_in_json_is_named(written: str, detail: str) -> None:
    answer = json.loads(f'"{written}"')
    assert parse_text(answer) == FieldFault("lost_backslash", detail)
    assert parse_text(f"Let {answer}. What is it?", short=False) == FieldFault("lost_backslash", detail)


@pytest.mark.parametrize("text", ["\vec{a}", "\alpha", "\forall x", "\bar{x}"])
def test_the_escapes_of_a_program_are_named_too(text: str) -> None:
    fault = parse_text(text)
    assert isinstance(fault, FieldFault) and fault.reason == "lost_backslash"


@pytest.mark.parametrize("text", ["\tan x", "x \ne 3", "2\nu", "\to 5", "\rangle", "a \fat one"])
def test_in_an_answer_a_rest_may_be_a_letter_or_a_word(text: str) -> None:
    """At the beginning of a line of prose the same is in order."""
    fault = parse_text(text)
    assert isinstance(fault, FieldFault) and fault.reason == "lost_backslash"
    assert parse_text(text, short=False) == text


@pytest.mark.parametrize(
    "text",
    ["x = 5\ny = 6", "x=5\r\ny=6", "\tindented\n\ttext", "1\t2\t3", "a\n\nb", "\\frac{1}{2}", "\\times", "5\f", "\v7",
     "text\nnumber of teeth", "page\n\f\nnext", "Find\nextent", "\tfraction"],
)  # fmt: skip
def test_white_space_that_is_meant_stays(text: str) -> None:
    assert parse_text(text, short=False) == text
    assert parse_text(text) == text


def test_an_answer_behind_a_marker_is_what_is_looked_at() -> None:
    assert parse_answer("2 \neq 3, \n#### 5 ", "####") == "5"
    assert parse_answer(7.0) == "7"
    for value, reason in (
        ("#### nan", "missing"),
        ("####  ", "missing"),
        ("nan", "without_marker"),
        (7, "without_marker"),
        (" ", "missing"),
        (None, "missing"),
        (["#### 5"], "not_text"),
        ("so #### \frac{1}{2}", "lost_backslash"),
    ):
        fault = parse_answer(value, "####")
        assert isinstance(fault, FieldFault) and fault.reason == reason, value
