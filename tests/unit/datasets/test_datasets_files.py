"""Local files as data sets: what is read, what is set aside and why, which sentence a bad file gets."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.load import load_config
from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets import row_files
from nemo_tapo.datasets.read import LoadedDataset, read_dataset
from tests.helpers.data_files import data_file

KEY = "task.mathematics.train"
ROWS = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(5)]


def loaded(path: Path, **settings: Any) -> LoadedDataset:
    return read_dataset(DatasetConfig(path=path, **settings), "train", KEY)


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def sentence(path: Path, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the sentence
        loaded(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_rows(found: LoadedDataset) -> bool:
    return [(e.question, e.answer) for e in found.rows] == [(r["problem"], r["answer"]) for r in ROWS]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n"))
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        found = loaded(path)
        assert same_rows(found), path
        assert [e.uid for e in found.rows] == [f"train-{i}" for i in range(5)]
        assert found.provenance.rows == 5
        assert found.provenance.source == str(path)


def test_broken_rows_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        '{"problem": "1+1?", "answer": 2}',
        '{"problem": "torn", "ans',
        "[1, 2]",
        '{"problem": "no answer", "answer": null}',
        '{"problem": "blank answer", "answer": " "}',
        '{"problem": "", "answer": "1"}',
        '{"answer": "1"}',
        '{"problem": 12, "answer": "1"}',
        '{"problem": "list", "answer": ["1"]}',
        '{"problem": "yes", "answer": true}',
        '{"problem": "inf", "answer": Infinity}',
        '{"problem": "gap of a table", "answer": NaN}',
        '{"problem": "half a character \\ud83d", "answer": "1"}',
        json.dumps({"problem": "x" * 1_000_000, "answer": "1"}),
        "[" * 100_000,
        '{"problem": "float", "answer": 72.0}',
        '{"problem": "half", "answer": 0.5}',
        '{"problem": "negative", "answer": -3}',
        '{"problem": "small", "answer": 1e-05}',
        '{"problem": "large", "answer": 1e22}',
        '{"problem": "a gap as text", "answer": "nan"}',
        r'{"problem": "one backslash", "answer": "2\frac{1}{2}"}',
        r'{"problem": "one backslash in \theta", "answer": "1"}',
        '{"problem": "too many digits", "answer": ' + "7" * 5000 + "}",
    )
    found = loaded(path)
    assert [(e.uid, e.answer) for e in found.rows] == [
        ("train-0", "2"), ("train-15", "72"), ("train-16", "0.5"), ("train-17", "-3"), ("train-18", "0.00001"),
        ("train-19", "1" + "0" * 22), ("train-23", "7" * 5000),
    ]  # fmt: skip
    reasons = Counter(row.reason for row in found.provenance.set_aside)
    assert reasons == {
        "not_json": 2, "not_an_object": 1, "answer_missing": 5, "question_missing": 2, "question_not_text": 1,
        "answer_not_text": 2, "question_not_unicode": 1, "question_too_long": 1, "answer_lost_backslash": 1,
        "question_lost_backslash": 1,
    }  # fmt: skip
    details = {row.uid: row.detail for row in found.provenance.set_aside}
    assert (details["train-10"], details["train-11"]) == ("it is the number inf", "it is the number nan")
    assert details["train-21"] == r"a form feed and 'rac', where \frac was meant; in JSON it is \\frac"
    assert found.provenance.rows == 24 == len(found.rows) + sum(reasons.values())
    torn = next(row for row in found.provenance.set_aside if row.reason == "not_json")
    assert (torn.uid, torn.detail[:6]) == ("train-1", "line 2")


def test_a_number_that_python_does_not_convert_costs_its_own_row_alone(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(
        '[{"problem": "a", "answer": ' + "7" * 5000 + '}, {"problem": "b", "answer": 5}]'
    )
    assert [e.answer for e in loaded(tmp_path / "array.json").rows] == ["7" * 5000, "5"]


def test_the_solution_of_a_row_counts_too(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        r'{"problem": "1+1?", "answer": "2", "solution": "it is \\frac{4}{2}"}',
        r'{"problem": "1+2?", "answer": "3", "solution": "it is \frac{6}{2}"}',
        '{"problem": "1+3?", "answer": "4", "solution": null}',
    )
    found = loaded(path, solution="solution")
    assert [e.solution for e in found.rows] == [r"it is \frac{4}{2}", ""]
    assert [(row.uid, row.reason) for row in found.provenance.set_aside] == [("train-1", "solution_lost_backslash")]


def test_numbers_of_a_table_are_exact(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, values, kind, answers in (
        ("float", [72.0, 1e-05, None, float("nan")], pa.float64(), ["72", "0.00001"]),
        ("decimal", [Decimal("0.10"), Decimal("7.00"), None], pa.decimal128(10, 2), ["0.1", "7"]),
        ("text", ["0.10", "None", "nan"], pa.string(), ["0.10"]),
    ):
        table = pa.table({"problem": [f"{i}?" for i in range(len(values))], "answer": pa.array(values, kind)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        found = loaded(tmp_path / f"{name}.parquet")
        assert [e.answer for e in found.rows] == answers
        assert {row.reason for row in found.provenance.set_aside} == {"answer_missing"}


def test_a_line_of_many_megabytes_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "LONGEST_LINE", 1000)
    path = write(tmp_path / "a.jsonl", json.dumps(ROWS[0]), '{"problem": "' + "x" * 5000 + '"}', json.dumps(ROWS[1]))
    found = loaded(path)
    assert [e.answer for e in found.rows] == ["0", "2"]
    assert [row.reason for row in found.provenance.set_aside] == ["line_too_long"]


def test_fields_and_uids_are_those_of_the_config(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"q": "1+1?", "a": "2 #### 3 #### 4", "name": 7, "level": "hard"}',
        '{"q": "1+2?", "a": "no marker", "name": "b"}',
        '{"q": "1+3?", "a": "nothing behind ####", "name": "c"}',
        '{"q": "1+4?", "a": "#### 5"}',
    )
    found = loaded(path, question="q", answer="a", uid="name", answer_after="####")
    assert [(e.uid, e.question, e.answer) for e in found.rows] == [("7", "1+1?", "4")]
    assert found.rows[0].raw["level"] == "hard"
    assert [(row.uid, row.reason) for row in found.provenance.set_aside] == [
        ("b", "answer_without_marker"), ("c", "answer_missing"), ("train-3", "uid_missing"),
    ]  # fmt: skip


def test_a_field_that_no_row_has_is_an_error_with_the_fields_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "1+1?", "final_answer": "2", "source": "x"}')
    assert sentence(path) == (
        f"{KEY}.question: no row of {path} has a field 'problem'; they have question, final_answer, source; "
        "did you mean 'question'?"
    )
    assert "did you mean 'final_answer'" in sentence(path, question="question")
    assert f"{KEY}.uid" in sentence(path, question="question", answer="final_answer", uid="id")


def test_row_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(json.dumps(row) for row in ROWS))
    assert same_rows(loaded(path, rows=5))
    assert sentence(path, rows=30) == f"{KEY}: {path} has 5 rows, not 30. If that is meant, set {KEY}.rows=5."


def test_files_that_are_no_data(tmp_path: Path) -> None:
    assert "no file" in sentence(tmp_path / "nothing.jsonl")
    assert "is empty" in sentence(write(tmp_path / "empty.jsonl"))
    assert "has no rows" in sentence(write(tmp_path / "blank.jsonl", "", "  "))
    assert "has no rows" in sentence(write(tmp_path / "none.json", "[]"))
    assert f"did you mean {tmp_path / 'blank.jsonl'}?" in sentence(tmp_path)
    assert "line 2 is not UTF-8" in sentence(
        write(tmp_path / "latin.jsonl", json.dumps(ROWS[0]), b'{"problem": "\xe9"}')
    )
    assert "not UTF-8" in sentence(write(tmp_path / "utf16.jsonl", json.dumps(ROWS[0]).encode("utf-16")))
    assert "not UTF-8" in sentence(write(tmp_path / "latin.json", b'[{"problem": "\xe9"}]'))
    assert "begins like a JSON array but is none" in sentence(write(tmp_path / "cut.json", '[{"problem": "1"'))
    whole = gzip.compress(b"\n".join(json.dumps(row).encode() for row in ROWS))
    (tmp_path / "cut.gz").write_bytes(whole[:-12])
    assert "gzip file is damaged" in sentence(tmp_path / "cut.gz")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(100))
    assert "Parquet file is damaged" in sentence(tmp_path / "cut.parquet")
    prose = sentence(write(tmp_path / "prose.csv", "problem,answer", "1+1,2"))
    assert prose.startswith("task.mathematics.train: ") and "no row can be read; the first: not_json, line 1" in prose
    assert "JSON Lines, a JSON array or Parquet" in prose
    assert "not UTF-8" in sentence(write(tmp_path / "binary.bin", bytes(range(128, 256))))


def test_exactly_one_source() -> None:
    for given, why in (({}, "set path to a file or hub"), ({"path": "x", "hub": "a/b"}, "path and hub are both given")):
        with pytest.raises(ValueError, match=rf"^task\.mathematics\.train: .*{why}"):
            validate({"task": {"mathematics": {"train": {"split": "train", **given}}}})


def test_settings_of_named_and_optional_sets_on_the_command_line() -> None:
    """Sections that may be absent, sections under names of the user's own, and dicts of anything."""
    name = "task.mathematics.benchmarks.mine"
    cfg = load_config(
        None, [f"{KEY}.path=a.jsonl", f"{name}.path=b.jsonl", f"{name}.rows=30", "judge.endpoint.extra_body.x=1"]
    )
    mathematics = cfg.task.mathematics
    assert mathematics.train is not None
    assert (mathematics.train.path, mathematics.benchmarks["mine"].rows) == (Path("a.jsonl"), 30)
    assert cfg.judge.endpoint.extra_body == {"x": 1}
    for wrong, right in (
        (f"{KEY}.pth=a", f"{KEY}.path"),
        (f"{name}.row=3", f"{name}.rows"),
        ("task.mathematics.trian.path=a", f"{KEY}.path"),
        ("judge.endpoint.extra_bdy=1", "judge.endpoint.extra_body"),
    ):
        with pytest.raises(ValueError, match=f"did you mean '{right}'"):
            load_config(None, [wrong])


@pytest.mark.parametrize("name", ["math-eval", "math-filter", "math-local-file"])
def test_ready_configs_pin_commits_and_rows(name: str) -> None:
    cfg = load_config(Path(__file__).parents[3] / "examples" / "configs" / f"{name}.yaml")
    m = cfg.task.mathematics
    sets = {**m.benchmarks, **({"train": m.train} if m.train else {})}
    assert cfg.task.name == "mathematics"
    assert not cfg.model.enable_thinking
    for one in sets.values():
        assert one.path or (len(one.revision or "") == 40 and one.rows and one.licence)
    if name == "math-eval":
        e = cfg.evaluation
        assert (e.samples, e.runs, e.temperature, e.top_p) == (5, 16, 0.6, 0.9)
        assert {n: one.rows for n, one in sets.items()} == {"aime24": 30, "aime25": 30, "hmmt25": 30}
        assert sets["aime25"].configs == ("AIME2025-I", "AIME2025-II")


def test_a_ready_set_is_added_on_the_command_line() -> None:
    config = Path(__file__).parents[3] / "examples" / "configs" / "math-eval.yaml"
    cfg: RunConfig = load_config(config, ["+data@task.mathematics.benchmarks.gsm8k=gsm8k"])
    assert cfg.task.mathematics.benchmarks["gsm8k"].answer_after == "####"
    with pytest.raises(ValueError, match="gsm9k"):
        load_config(config, ["+data@task.mathematics.benchmarks.gsm8k=gsm9k"])


def test_real_files() -> None:
    """Thirty problems of AIME 2024; HMMT without geometry 4 is not the benchmark; GSM8K as published, after ####."""
    assert len(loaded(data_file("aime24.jsonl"), rows=30, uid="id").rows) == 30
    assert "has 29 rows, not 30" in sentence(data_file("hmmt_feb25.jsonl"), rows=30)
    path = data_file("gsm8k_test_700.jsonl")
    from_text = [e.answer for e in loaded(path, answer="solution", answer_after="####").rows]
    assert from_text == [json.loads(line)["answer"] for line in path.read_text().splitlines()]


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(json.dumps(row) for row in ROWS))
    program = (
        "import sys, pathlib, nemo_tapo.datasets.hub, nemo_tapo.tasks.mathematics, nemo_tapo.stages.filter_queries\n"
        "from nemo_tapo.config.sections import DatasetConfig\n"
        f"nemo_tapo.datasets.read.read_dataset(DatasetConfig(path=pathlib.Path({str(path)!r})), 'train', 'key')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    heavy = {"datasets", "pyarrow", "huggingface_hub", "math_verify", "transformers", "vllm", "ray"}
    assert heavy & set(done.stdout.split()) == set()
