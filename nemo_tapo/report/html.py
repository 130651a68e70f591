"""`report.html`: a run as one self-contained page, for a person who has never read the code. No network.

Static parts (settings, tables, figures as data URIs) are written here; the trajectories travel as JSON and
are drawn by page.js, ten cards at a time. Template, style and script are page.html, page.css and page.js
beside this file.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from nemo_tapo.evaluation import paper_results
from nemo_tapo.evaluation.tables import LEGEND, settings_lines, tables
from nemo_tapo.report import summary
from nemo_tapo.report.plots import Metrics, construction_figure, figure3
from nemo_tapo.tracking.records import outcome, read_metrics
from nemo_tapo.utils.jsonl import Record, finite

PAGE, FIGURE3, CONSTRUCTION = "report.html", "figure3.png", "construction.png"


def write_page(
    run_folder: Path, compare: Mapping[str, Path] | None = None, window: int | None = None, limit: int = 5000
) -> Path:
    """Writes `report.html` into the run folder, and its plots once more as figure3.png and construction.png.

    compare: {name: run folder} of other runs, overlaid in Figure 3. window: steps of the rolling mean
    (plots.figure3).
    limit: most trajectory records in the page; more are thinned out evenly, and the page says so.
    Returns the page's path. Raises ValueError if a folder is no run folder or a file in it is damaged.
    """
    run = summary.load(run_folder)
    runs: dict[str, Metrics] = {run.name: run.metrics}
    runs |= {name: read_metrics(folder).rows for name, folder in (compare or {}).items()}
    shown = _thinned(run.trajectories, limit)
    notes = list(run.notes)
    if len(shown) < len(run.trajectories):
        notes.append(
            f"{len(shown):,} of {len(run.trajectories):,} trajectory records are in this page, evenly spread "
            "over the run; all are in trajectories.jsonl."
        )
    counts = summary.outcome_counts(shown)
    parts = {
        "name": escape(run.name),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        "settings": _settings(run.config),
        "evaluation": _evaluation(run.evaluation),
        "latest": _latest(run.metrics),
        "figure3": _figures(
            "Figure 3: six panels of training dynamics",
            lambda t, d: figure3(runs, t, window, d),
            run_folder / FIGURE3,
        ),
        "paper_figure": "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in paper_results.FIGURE_3) + "</ul>",
        "totals": _table(("over all steps", "number", "share"), summary.totals(run.metrics)),
        "construction": _figures(
            "What became of queries and pairs, over steps",
            lambda t, d: construction_figure(run.metrics, t, window, d),
            run_folder / CONSTRUCTION,
        ),
        "records": _embedded([_compact(record) for record in shown]),
        "outcomes": _embedded({name: (n, summary.OUTCOMES.get(name, "")) for name, n in counts.items()}),
        "css": _resource("page.css"),
        "js": _resource("page.js"),
    }
    path = run_folder / PAGE
    temporary = path.with_name(PAGE + ".tmp")
    temporary.write_bytes(_fill(_resource("page.html"), parts).encode("utf-8", "replace"))
    os.replace(temporary, path)
    return path


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Replaces {{name}} in one pass, so that nothing inserted is read as a placeholder."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _resource(name: str) -> str:
    return resources.files("nemo_tapo.report").joinpath(name).read_text(encoding="utf-8")


def _embedded(value: Any) -> str:
    """JSON that is safe inside <script>: no '<', so no tag can end or begin there."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _thinned(records: Sequence[Record], limit: int) -> Sequence[Record]:
    if len(records) <= limit:
        return records
    return [records[index * len(records) // limit] for index in range(limit)]


def _compact(record: Record) -> Record:
    """As page.js wants a record: its outcome's name, no text twice, offsets in JavaScript's UTF-16 units."""
    out = {**record, "outcome": outcome(record)}
    if record["kind"] == "pair":
        text = record["reconstruction"]
        for key in ("kept_chars", "turn_chars"):
            out[key] = len(text[: record[key]].encode("utf-16-le", "replace")) // 2
        if record["tokens"]:
            out["reconstruction"] = ""
        out["weights"] = [round(weight, 3) for weight in record["weights"]]
    return out


def _settings(config: Mapping[str, Any]) -> str:
    rows = summary.highlights(config)
    if not rows:
        return "<dd>The run's configuration was not found beside its output.</dd>"
    return "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text; a signed number is coloured as a gain or a loss, unless the interval behind it holds 0."""
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    if not body:
        return '<p class="meaning">Nothing was recorded.</p>'
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    numbers = [float(number) for number in re.findall(r"[+-][\d.]+", text)] if text[:1] in ("+", "-") else []
    sign = "up" if numbers and min(numbers) > 0 else "down" if numbers and max(numbers) < 0 else None
    return f'<td class="{sign}">{escape(text)}</td>' if sign else f"<td>{escape(text)}</td>"


def _evaluation(evaluations: Mapping[str, Any]) -> str:
    """The tables of this run, and the paper's Table 1 for orientation."""
    own = "".join(f"<h3>{escape(t.title)}</h3>{_table(('', *t.head), t.rows)}" for t in tables(evaluations))
    lines = [LEGEND, *settings_lines(evaluations)] if own else ["Nothing was recorded."]
    reference = [
        (f"{benchmark}, {model}", *(f"{value:.2f}" for value in values))
        for benchmark, models in paper_results.TABLE_1.items()
        for model, values in models.items()
    ]
    table = _table(("Qwen3-8B, percent", "pass@1", "pass@2", "pass@3", "pass@4", "pass@5"), reference)
    told = "".join(f'<p class="meaning">{escape(line)}</p>' for line in lines)
    return (
        told + own + f"<details><summary>The paper's own numbers, for orientation (Table 1)</summary>{table}</details>"
    )


def _latest(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return ""
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}{", " * bool(unit)}{escape(unit)}</span>'
        f"<b>{escape(first)} → {escape(last)}</b></div>"
        for name, first, last, unit in summary.latest(metrics)
    )
    steps = len(metrics)
    return f'<p class="meaning">First and last of {steps:,} steps:</p><div class="tiles">{tiles}</div>'


def _figures(alt: str, draw: Callable[[io.BytesIO, bool], None], beside: Path) -> str:
    """The figure for light and for dark, as images within the page; the light one also as the file `beside`."""
    images = []
    for dark in (False, True):
        buffer = io.BytesIO()
        draw(buffer, dark)
        if not dark:
            beside.write_bytes(buffer.getvalue())
        data = base64.b64encode(buffer.getvalue()).decode()
        theme = "for-dark" if dark else "for-light"
        images.append(f'<img class="figure {theme}" alt="{escape(alt)}" src="data:image/png;base64,{data}">')
    return "".join(images)
