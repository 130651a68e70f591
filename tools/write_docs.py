"""Write what documentation has of the code: tables of metrics and of NeMo-RL's keys and steps, the picture of a step.

python tools/write_docs.py            write docs/metrics.md, two tables of docs/cluster.md, and docs/pipeline.svg
python tools/write_docs.py --check    exit 1 if one of them is not what this would write (CI runs it)
"""

from __future__ import annotations

import sys
from pathlib import Path

from nemo_tapo.metrics import DESCRIPTIONS
from nemo_tapo.runtime.nemo_rl.config.key_fates import make_table

sys.path.insert(0, str(Path(__file__).parent))
import published_steps
from pipeline_picture import draw_pipeline

DOCS = Path(__file__).parents[1] / "docs"

METRICS_HEAD = """\
# Metrics

For readers of `metrics.jsonl`, TensorBoard and the report: every key of a step, its unit and its meaning. The keys are
constants of [`nemo_tapo/metrics.py`](../nemo_tapo/metrics.py), from which `python tools/write_docs.py` writes this
table. A mean over nothing (the weight of constructed tokens in a step without any) is absent. With several updates a
step, the numbers of the update are the mean over them.

| key | unit | meaning |
| --- | --- | --- |
"""


def write_metrics_table() -> str:
    """Return docs/metrics.md."""
    rows = [f"| `{key}` | {each.unit} | {each.meaning.replace('|', '&#124;')} |" for key, each in DESCRIPTIONS.items()]
    return METRICS_HEAD + "\n".join(rows) + "\n"


BEGIN, END = "<!-- {name}: written by tools/write_docs.py -->\n", "<!-- end -->\n"


def write_cluster_page() -> str:
    """Return docs/cluster.md with the tables of NeMo-RL's keys and of its published steps, each between two marks."""
    page = (DOCS / "cluster.md").read_text(encoding="utf-8")
    for name, table in (("steps", published_steps.make_table()), ("keys", make_table())):
        begin = BEGIN.format(name=name)
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(END)
        page = f"{before}{begin}{table}{END}{after}"
    return page


def main(arguments: list[str]) -> int:
    """Write or check the files; return the exit code."""
    files = {
        DOCS / "metrics.md": write_metrics_table(),
        DOCS / "cluster.md": write_cluster_page(),
        DOCS / "pipeline.svg": draw_pipeline(),
    }
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is out of date: run python tools/write_docs.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote {path.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
