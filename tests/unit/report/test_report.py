"""What a run leaves behind, and the figures, page and terminal view made from it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from nemo_tapo.evaluation.tables import make_tables
from nemo_tapo.report import summary
from nemo_tapo.report.html import write_page
from nemo_tapo.report.plots import compute_rolling_stats, draw_construction_figure, draw_figure3
from nemo_tapo.report.terminal import print_run
from nemo_tapo.tracking.records import (
    MetricsWriter,
    TrajectoryWriter,
    find_turn_end,
    get_outcome,
    make_skipped_record,
    make_trajectory_record,
    read_metrics,
    read_trajectories,
    take_fair_share,
)
from nemo_tapo.types import Group, Query
from nemo_tapo.utils import jsonl
from tests.helpers import report_samples as samples


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample run whose last record tries to break out of the page."""
    folder = samples.write_run(tmp_path_factory.mktemp("runs") / "sample", steps=12, trajectory_steps=8)
    hostile = {
        **samples.example_record(dropped="leak"),
        **dict.fromkeys(("question", "wrong", "reference", "analysis", "raw"), samples.HOSTILE),
        "reconstruction": "\x1b[31m\U0001f600" + samples.HOSTILE,
    }
    writer = TrajectoryWriter(folder)
    writer.write(11, [hostile])
    writer.close()
    return folder


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return write_page(run_folder).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ records


def test_worked_example_record() -> None:
    record = samples.example_record()
    text, kept, turn = record["reconstruction"], record["kept_chars"], record["turn_chars"]
    assert text[:kept] == "47+38=75\n" == record["wrong"][:kept]
    assert text[kept:turn] == "Wait, the carry was forgotten: "
    assert text[turn:] == "47+38=85\n\\boxed{85}"
    assert "".join(record["tokens"]) == text
    assert len(record["tokens"]) == len(record["weights"])
    assert record["weights"][record["tokens"].index(" carry")] == 0.05
    assert (record["group"], record["uid"], get_outcome(record)) == ("7_reflected", "7_reflected/0", "corrected")
    assert record["raw"] == ""
    assert record["extracted"] == "85"
    assert record["advantage"] == 0.577


def test_dropped_record_keeps_the_raw_answer() -> None:
    record = samples.example_record(
        dropped="truncated", raw="<analysis>cut", reconstruction="", kept_chars=0, grade=None
    )
    assert record["raw"] == "<analysis>cut"
    assert record["tokens"] == []
    assert record["advantage"] is None
    assert record["outcome"] is None
    assert record["reward"] == 0.0
    assert get_outcome(record) == "dropped:truncated"


def test_weights_must_match_tokens() -> None:
    with pytest.raises(AssertionError, match="3 tokens but 1 weights"):
        make_trajectory_record(samples.example_construction(), ["a", "b", "c"], [1.0], 0.0)


def test_skipped_record() -> None:
    query = Query("7", "47+38=?", "85")
    rollouts = tuple(samples.rollout(query, k, f"answer {k}", float(k == 2)) for k in range(4))
    record = make_skipped_record(Group(query, rollouts), "beyond")
    assert record["rewards"] == [0.0, 0.0, 1.0, 0.0]
    assert (record["right"], record["wrong"], get_outcome(record)) == ("answer 2", "answer 0", "skipped:beyond")
    assert make_skipped_record(Group(query, rollouts[:2]), "beyond")["right"] is None


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("KEEP\nWait, that is wrong: 3.14 is pi", "Wait, that is wrong: "),
        ("KEEP\nWait. That is wrong. 1+1=2", "Wait. That is wrong. "),
        ("KEEP Hmm, 3.14 is not it.\n1+1=2", " Hmm, 3.14 is not it.\n"),
        ("KEEP\n\nNo!\n1+1=2", "\nNo!\n"),
        ("KEEP and so on", " and so on"),
        ("KEEP", ""),
    ],
)
def test_turn_ends_with_its_sentence_or_line(text: str, turn: str) -> None:
    kept = 5 if text.startswith("KEEP\n") else 4
    assert text[kept : find_turn_end(text, kept)] == turn


def test_nothing_kept_means_no_turn() -> None:
    assert find_turn_end("A whole new solution. 1+1=2", 0) == 0


# ------------------------------------------------------------------------------------------------ files


def test_metrics_are_written_line_by_line(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"loss": 0.5, "grad_norm": math.nan})
    assert read_metrics(tmp_path).rows == ({"step": 0, "loss": 0.5, "grad_norm": None},)  # before any close
    with pytest.raises(ValueError, match="steps up to 0 already"):
        writer.write(0, {"loss": 0.4})
    writer.close()


def test_truncate_after_gives_each_step_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in range(6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    resumed = MetricsWriter(tmp_path)
    assert resumed.truncate_after(3) == 2
    assert resumed.last_step == 3
    resumed.write(4, {"loss": 40.0})
    resumed.close()
    rows = read_metrics(tmp_path).rows
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["loss"] == 40.0
    assert not list(tmp_path.glob("*.tmp"))


def test_tensorboard_shows_the_resumed_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = MetricsWriter(tmp_path)
    for step in range(4):
        first.write(step, {"loss": float(step)})
    first.close()
    second = MetricsWriter(tmp_path)
    second.truncate_after(1)
    second.write(2, {"loss": 20.0})
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 0.0), (1, 1.0), (2, 20.0)]


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b'{"step": 2, "text": "\xc3'])
def test_half_written_line_is_left_out_and_said(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n' + tail)
    lines = read_metrics(tmp_path)
    assert [row["step"] for row in lines.rows] == [0, 1]
    assert lines.notes == ("metrics.jsonl: the last line (3) is half-written and was left out.",)
    writer = MetricsWriter(tmp_path)  # opening mends: the next line is not glued to the broken one
    writer.write(2, {"loss": 1.0})
    writer.close()
    again = read_metrics(tmp_path)
    assert [row["step"] for row in again.rows] == [0, 1, 2]
    assert again.notes == ()


def test_whole_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"step": 1}')
    writer = MetricsWriter(tmp_path)
    writer.write(2, {})
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path).rows] == [0, 1, 2]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not a JSON object"):
        read_metrics(tmp_path)


def test_any_text_can_be_stored(tmp_path: Path) -> None:
    appender = jsonl.Appender(tmp_path / "x.jsonl")
    appender.append([{"step": 0, "text": "line\nbreak \u2028 \ud800 \u00e9"}])
    appender.close()
    assert jsonl.read_lines(tmp_path / "x.jsonl").rows[0]["text"] == "line\nbreak \u2028 ? \u00e9"


def test_limit_keeps_every_outcome_and_counts_the_rest(tmp_path: Path) -> None:
    records = [samples.example_record() for _ in range(5)] + [samples.example_record(dropped="leak")]
    kept = take_fair_share(records, 2, get_outcome)
    writer = TrajectoryWriter(tmp_path)
    writer.write(3, kept, left_out=4)
    writer.write(4, records[:1])
    assert writer.truncate_after(3) == 1
    writer.close()
    lines = read_trajectories(tmp_path)
    assert [get_outcome(row) for row in lines.rows] == ["corrected", "dropped:leak"]
    assert lines.notes == ("trajectories.jsonl: 4 more records were over the limit a step and not stored.",)


# ------------------------------------------------------------------------------------------------ summary


def test_summary_of_a_run(run_folder: Path) -> None:
    run = summary.load_run(run_folder)
    assert ("lambda", "1.0") in summary.list_highlights(run.config)
    assert (
        "task",
        "arithmetic",
    ) in summary.list_highlights(run.config)
    counts = {label: int(number.replace(",", "")) for label, number, _ in summary.compute_totals(run.metrics)}
    dropped = sum(number for label, number in counts.items() if label.startswith("pairs dropped"))
    assert counts["pairs of a wrong and a right response"] == counts["pairs that gave a trajectory"] + dropped


def test_tables_of_before_and_after() -> None:
    measured, synthesis = make_tables(samples.EVALUATION)
    assert (measured.title, measured.head) == ("arithmetic", ["before RL", "after RL", "change, points"])
    rows = {row[0]: tuple(row[1:]) for row in measured.rows}
    assert rows["pass@1"] == ("34.2% (30.2 to 38.2)", "66.8% (62.8 to 70.8)", "+32.6 (+30.1 to +35.1)")
    assert rows["first@5"][2] == "+21.3 (+18.8 to +23.8)"
    assert rows["cut off"] == ("2.0%", "2.0%", "")
    assert rows["verifier late"] == ("3", "0", "")
    assert "verifier failed" not in rows
    assert rows["up / down"] == ("", "", "150 / 30")
    assert [row[0] for row in measured.rows][:10] == [f"{name}@{k}" for name in ("pass", "first") for k in range(1, 6)]
    assert synthesis.head == ["before RL", "after RL"]
    assert synthesis.rows[0] == ["parsed of pairs", "83.8% (201/240)", "96.6% (224/232)"]


def test_half_an_evaluation_is_tolerated() -> None:
    [table] = make_tables(
        {"before": {"benchmarks": {"b": {"pass@1": 0.5, "pass@1/interval95": [0.4, 0.6], "problems": 3}}}}
    )
    assert table.head == ["before RL", "after RL", "change, points"]
    assert table.rows == [["pass@1", "50.0% (40.0 to 60.0)", "-", ""], ["problems", "3", "-", ""]]
    assert make_tables({}) == []
    assert make_tables({"before": {"pass@1": 0.5}}) == []  # as an earlier version wrote it


def test_one_evaluation_of_several_benchmarks_has_them_as_columns() -> None:
    result = {"benchmarks": {"a": {"pass@1": 0.25}, "b": {"pass@1": 0.5}}, "average": {"pass@1": 0.375}}
    [table] = make_tables({"tiny-base": result})
    assert (table.title, table.head) == ("tiny-base", ["a", "b", "average"])
    assert table.rows == [["pass@1", "25.0%", "50.0%", "37.5%"]]
    both = make_tables({"tiny-base": result, "other": {"benchmarks": {"a": {"pass@1": 0.125}}}})
    assert [(t.title, t.head, t.rows[0]) for t in both] == [
        ("a", ["tiny-base", "other"], ["pass@1", "25.0%", "12.5%"]),
        ("b", ["tiny-base", "other"], ["pass@1", "50.0%", "-"]),
        ("average", ["tiny-base", "other"], ["pass@1", "37.5%", "-"]),
    ]


def test_every_drop_reason_is_explained() -> None:
    from nemo_tapo.algorithms.reflection import DROP_REASONS

    assert {f"dropped:{reason}" for reason in DROP_REASONS} <= set(summary.OUTCOME_MEANINGS)


def test_config_may_be_yaml_and_name_lambda_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("algorithm: tapo\ntapo: {weight: 0.5}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n')
    assert summary.list_highlights(summary.load_run(tmp_path).config) == [("algorithm", "tapo"), ("lambda", "0.5")]


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was trained there yet"):
        summary.load_run(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        summary.load_run(tmp_path / "absent")


# ------------------------------------------------------------------------------------------------ figures


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_figures_are_pngs(run_folder: Path, tmp_path: Path) -> None:
    metrics = read_metrics(run_folder).rows
    draw_figure3({"tapo": metrics, "other": metrics[:3]}, tmp_path / "new" / "figure3.png", window=2)
    draw_construction_figure(metrics, tmp_path / "construction.png", dark=True)
    for name in ("new/figure3.png", "construction.png"):
        width, height = png_size((tmp_path / name).read_bytes())
        assert width >= 1200
        assert height >= 700


@pytest.mark.parametrize(
    "metrics", [[], [{"step": 0}], [{"step": 0, "loss": None}, {"step": 7, "loss": 1.0, "kl_ref": 0.1}]]
)
def test_figures_tolerate_missing_keys(metrics: list[dict[str, Any]]) -> None:
    for draw in (lambda out: draw_figure3({"run": metrics}, out), lambda out: draw_construction_figure(metrics, out)):
        out = BytesIO()
        draw(out)
        png_size(out.getvalue())


def test_figure_faults_are_said() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        draw_figure3({}, BytesIO())
    with pytest.raises(ValueError, match="window is 0"):
        draw_figure3({"run": []}, BytesIO(), window=0)


def test_rolling_against_numpy() -> None:
    rng = Random(5)
    values = np.array([rng.gauss(1e6, 1.0) for _ in range(50)])
    values[[3, 17, 18]] = np.nan
    mean, deviation = compute_rolling_stats(values, 7)
    for i in range(50):
        part = values[max(0, i - 6) : i + 1]
        assert mean[i] == pytest.approx(np.nanmean(part), rel=1e-12)
        assert deviation[i] == pytest.approx(np.nanstd(part), abs=1e-4)
    assert np.isnan(compute_rolling_stats(np.array([np.nan, 1.0]), 1)[0][0])


# ------------------------------------------------------------------------------------------------ page


class Reader(HTMLParser):
    """Collects tags, attributes and script texts; notices unbalanced tags."""

    VOID = frozenset({"meta", "img", "input", "br", "hr", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            name = self.tags[-1][1].get("id") or "code"
            self.scripts[name] = self.scripts.get(name, "") + data
        else:
            self.text += data


def parse(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_one_file_without_network(page: str) -> None:
    reader = parse(page)
    links = [v for _, attrs in reader.tags for k, v in attrs.items() if k in ("src", "href", "action", "srcset") and v]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "link" not in {tag for tag, _ in reader.tags}
    assert "@import" not in page
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?(https?:)?//""", page)
    assert "default-src 'none'" in page  # the browser would refuse a connection, too
    assert "{{" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # every placeholder filled


def test_page_holds_the_run(page: str, run_folder: Path) -> None:
    reader = parse(page)
    for text in (
        "sample",
        "34.2%",
        "66.8%",
        "+32.6 (+30.1 to +35.1)",
        "pairs dropped: truncated",
        "kept",
        "turn",
        "correction",
    ):
        assert text in reader.text
    assert sum(tag == "img" for tag, _ in reader.tags) == 4  # two figures, light and dark
    records = json.loads(reader.scripts["records"])
    assert len(records) == len(read_trajectories(run_folder).rows)
    assert {record["outcome"] for record in records} == set(json.loads(reader.scripts["outcomes"]))


@pytest.mark.parametrize(
    ("text", "tone"),
    [
        ("+4.2 (+0.1 to +9.4)", "up"),
        ("-4.2 (-9.4 to -0.1)", "down"),
        ("+4.2 (-1.0 to +9.4)", None),
        ("+0.0 (+0.0 to +0.0)", None),
        ("-", None),
        ("12", None),
    ],
)
def test_a_change_is_coloured_only_if_its_interval_excludes_0(text: str, tone: str | None) -> None:
    from nemo_tapo.report.html import _render_cell

    assert _render_cell(text) == (f'<td class="{tone}">{text}</td>' if tone else f"<td>{text}</td>")


def test_hostile_text_stays_text(page: str) -> None:
    reader = parse(page)
    assert page.count("<script") == 3
    assert page.count("</script>") == 3
    assert "owned" not in reader.text
    assert "onerror" not in {k for _, attrs in reader.tags for k in attrs}
    last = json.loads(reader.scripts["records"])[-1]
    assert last["question"] == samples.HOSTILE
    assert "<" not in reader.scripts["records"]
    assert "innerHTML" not in page
    assert "document.write" not in page


def test_run_name_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a<b>&c"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n')
    page = write_page(folder).read_text()
    assert "<title>a&lt;b&gt;&amp;c" in page
    assert "<b>&c" not in page
    assert "so there is no table of pass@k" in parse(page).text


def test_offsets_count_utf16_units(page: str) -> None:
    from nemo_tapo.report.html import _compact_record

    text = "\U0001f600" * 3 + "ab"
    record = {
        **samples.example_record(),
        "reconstruction": text,
        "tokens": [],
        "weights": [],
        "kept_chars": 2,
        "turn_chars": 4,
    }
    compact = _compact_record(record)
    assert (compact["kept_chars"], compact["turn_chars"]) == (4, 7)


def test_many_records_are_thinned_out_and_said(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    text = parse(write_page(folder, limit=10).read_text()).text
    assert "10 of 65 trajectory records are in this page" in text


# ------------------------------------------------------------------------------------------------ terminal


def shown(folder: Path, **options: Any) -> str:
    from rich.console import Console

    out = StringIO()
    print_run(folder, console=Console(file=out, width=80, highlight=False), **options)
    return out.getvalue()


def test_terminal_view_fits_80_columns_and_labels_the_parts(run_folder: Path) -> None:
    text = shown(run_folder, limit=20)
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "== TAPO run sample ==",
        "pass@1",
        "learning rate",
        "kept",
        "turn",
        "correction",
        "raw answer",
        "rollouts",
    ):
        assert word in text
    assert "\x1b" not in text  # neither colour in a pipe nor escapes out of a response
    assert "20 of 65 records shown" in text


def test_terminal_marks_low_weights(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n')
    writer = TrajectoryWriter(tmp_path)
    record = samples.example_record()
    ended = {**record, "tokens": [*record["tokens"], ""], "weights": [*record["weights"], 0.02]}
    writer.write(0, [ended])
    writer.close()
    text = shown(tmp_path)
    assert "Wait, the[ carry|0.05] was forgotten:" in text
    assert "\\boxed{85}[end|0.02]" in text


def test_terminal_neutralises_control_characters(run_folder: Path) -> None:
    text = shown(run_folder, step=11)
    assert "\u241b[31m" in text
    assert "</script>" in text
    assert "[/bold]" not in text


def test_terminal_step_and_limit_faults(run_folder: Path) -> None:
    with pytest.raises(ValueError, match="step 99 has no recorded trajectory; steps 0 to 11 have some"):
        shown(run_folder, step=99)
    with pytest.raises(ValueError, match="limit is -1"):
        shown(run_folder, limit=-1)


def test_terminal_that_knows_ascii_only(run_folder: Path) -> None:
    code = "import sys, pathlib, nemo_tapo.report.terminal as t; t.print_run(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code, run_folder], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert b"correction" in done.stdout


def test_readers_do_not_wait_for_torch() -> None:
    code = "import sys, nemo_tapo.report.html, nemo_tapo.report.terminal; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
