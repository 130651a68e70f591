"""Write `report.html`: a run as one self-contained page, for people who have never read the code. No network.

Static parts (settings, tables, figures as data URIs) are written here. The trajectories are embedded as JSON, and
page.js draws them, ten cards at a time. Template, style and script are page.html, page.css and page.js beside this
file.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from nemo_tapo.evaluation import paper_results
from nemo_tapo.evaluation.tables import LEGEND, format_settings_lines, make_tables
from nemo_tapo.report import summary
from nemo_tapo.report.plots import Metrics, draw_construction_figure, draw_figure3
from nemo_tapo.tracking.records import get_outcome, read_metrics
from nemo_tapo.utils.files import replace_lines
from nemo_tapo.utils.jsonl import Record, replace_non_finite

PAGE, FIGURE3, CONSTRUCTION = "report.html", "figure3.png", "construction.png"


def write_page(
    run_folder: Path, compare: Mapping[str, Path] | None = None, window: int | None = None, limit: int = 5000
) -> Path:
    """Write `report.html` into the run folder, and its plots also as figure3.png and construction.png.

    compare: {name: run folder} of other runs, overlaid in Figure 3. window: steps of the rolling mean
    (plots.draw_figure3). limit: maximum number of trajectory records in the page; more are thinned out evenly, and the
    page says so.
    Returns the page's path. Raises ValueError if a folder is not a run folder or a file in it is damaged.
    """
    run = summary.load_run(run_folder)
    runs: dict[str, Metrics] = {run.name: run.metrics}
    runs |= {name: read_metrics(folder).rows for name, folder in (compare or {}).items()}
    shown = _thin_out(run.trajectories, limit)
    notes = list(run.notes)
    if len(shown) < len(run.trajectories):
        notes.append(
            f"{len(shown):,} of {len(run.trajectories):,} trajectory records are in this page, evenly spread "
            "over the run; all are in trajectories.jsonl."
        )
    counts = summary.count_outcomes(shown)
    parts = {
        "name": escape(run.name),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        "settings": _render_settings(run.config),
        "evaluation": _render_evaluation(run.evaluation),
        "latest": _render_latest(run.metrics),
        "validation": _render_validation(run.metrics),
        "figure3": _render_figures(
            "Figure 3: six panels of training dynamics",
            lambda t, d: draw_figure3(runs, t, window, d),
            run_folder / FIGURE3,
        ),
        "paper_figure": "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in paper_results.FIGURE_3) + "</ul>",
        "totals": _render_table(("over all steps", "number", "share"), summary.compute_totals(run.metrics)),
        "construction": _render_figures(
            "What became of queries and pairs, over steps",
            lambda t, d: draw_construction_figure(run.metrics, t, window, d),
            run_folder / CONSTRUCTION,
        ),
        "records": _embed_json([_compact_record(record) for record in shown]),
        "outcomes": _embed_json({name: (n, summary.OUTCOME_MEANINGS.get(name, "")) for name, n in counts.items()}),
        "css": _read_resource("page.css"),
        "js": _read_resource("page.js"),
    }
    path = run_folder / PAGE
    replace_lines(path, [_fill_template(_read_resource("page.html"), parts).encode("utf-8", "replace")])
    return path


def _fill_template(template: str, parts: Mapping[str, str]) -> str:
    """Replace {{name}} in one pass, so that inserted text is never read as a placeholder."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _read_resource(name: str) -> str:
    return resources.files("nemo_tapo.report").joinpath(name).read_text(encoding="utf-8")


def _embed_json(value: Any) -> str:
    """Return JSON that is safe inside <script>: it has no '<', so no tag can end or begin there."""
    text = json.dumps(replace_non_finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _thin_out(records: Sequence[Record], limit: int) -> Sequence[Record]:
    if len(records) <= limit:
        return records
    return [records[index * len(records) // limit] for index in range(limit)]


def _compact_record(record: Record) -> Record:
    """Return a record as page.js reads it: outcome's name, no text twice, offsets in JavaScript's UTF-16 units."""
    out = {**record, "outcome": get_outcome(record)}
    if record["kind"] == "pair":
        text = record["reconstruction"]
        for key in ("kept_chars", "turn_chars"):
            out[key] = len(text[: record[key]].encode("utf-16-le", "replace")) // 2
        if record["tokens"]:
            out["reconstruction"] = ""
        out["weights"] = [round(weight, 3) for weight in record["weights"]]
    return out


def _render_settings(config: Mapping[str, Any]) -> str:
    rows = summary.list_highlights(config)
    if not rows:
        return "<dd>The run's configuration was not found beside its output.</dd>"
    return "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in rows)


def _render_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table of text. A signed number is coloured as a gain or a loss, unless its interval contains 0."""
    body = "".join("<tr>" + "".join(_render_cell(cell) for cell in row) + "</tr>" for row in rows)
    if not body:
        return '<p class="meaning">Nothing was recorded.</p>'
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _render_cell(text: str) -> str:
    numbers = [float(number) for number in re.findall(r"[+-][\d.]+", text)] if text[:1] in ("+", "-") else []
    sign = "up" if numbers and min(numbers) > 0 else "down" if numbers and max(numbers) < 0 else None
    return f'<td class="{sign}">{escape(text)}</td>' if sign else f"<td>{escape(text)}</td>"


def _render_evaluation(evaluations: Mapping[str, Any]) -> str:
    """Render the tables of this run, and the paper's Table 1 for orientation."""
    run_tables = "".join(
        f"<h3>{escape(t.title)}</h3>{_render_table(('', *t.head), t.rows)}" for t in make_tables(evaluations)
    )
    lines = [LEGEND, *format_settings_lines(evaluations)] if run_tables else ["Nothing was recorded."]
    reference = [
        (f"{benchmark}, {model}", *(f"{value:.2f}" for value in values))
        for benchmark, models in paper_results.TABLE_1.items()
        for model, values in models.items()
    ]
    table = _render_table(("Qwen3-8B, percent", "pass@1", "pass@2", "pass@3", "pass@4", "pass@5"), reference)
    explanation = "".join(f'<p class="meaning">{escape(line)}</p>' for line in lines)
    return (
        explanation
        + run_tables
        + f"<details><summary>The paper's own numbers, for orientation (Table 1)</summary>{table}</details>"
    )


def _render_latest(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return ""
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}{", " * bool(unit)}{escape(unit)}</span>'
        f"<b>{escape(first)} → {escape(last)}</b></div>"
        for name, first, last, unit in summary.list_first_and_last(metrics)
    )
    steps = len(metrics)
    return f'<p class="meaning">First and last of {steps:,} steps:</p><div class="tiles">{tiles}</div>'


def _render_validation(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Render the validations as a table that can be unfolded; "" if there was none."""
    head, rows = summary.tabulate_validation(metrics)
    if not rows:
        return ""
    return f"<details><summary>Validation on held-out problems</summary>{_render_table(head, rows)}</details>"


def _render_figures(alt: str, draw: Callable[[io.BytesIO, bool], None], beside: Path) -> str:
    """Return the figure in light and dark as images within the page; write the light one also to the file `beside`."""
    images = []
    for dark in (False, True):
        buffer = io.BytesIO()
        draw(buffer, dark)
        if not dark:
            replace_lines(beside, [buffer.getvalue()])
        data = base64.b64encode(buffer.getvalue()).decode()
        theme = "for-dark" if dark else "for-light"
        images.append(f'<img class="figure {theme}" alt="{escape(alt)}" src="data:image/png;base64,{data}">')
    return "".join(images)
