"""Write the model card of an exported model, README.md with Hugging Face's front matter, from the run's own records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.evaluation import results
from nemo_tapo.report.summary import list_highlights
from nemo_tapo.utils.code_version import read_code

DECISIVE = ("algorithm", "steps", "seed", "pipeline", "rollout", "tapo", "loss", "optimizer")
UNKNOWN = "not stated"
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class BaseModel:
    """The model that the run started from, as the card names it.

    >>> BaseModel("Qwen/Qwen3-8B", licence="apache-2.0").is_on_hub
    True
    """

    name: str
    licence: str | None = None

    @property
    def is_on_hub(self) -> bool:
        """Whether the name has the form `owner/name` of a Hub repository."""
        return self.name.count("/") == 1 and not self.name.startswith(("/", ".")) and not Path(self.name).exists()


def make_model_card(title: str, run: Path, config: Mapping[str, Any], base: BaseModel, parameters: int) -> str:
    """Return the card of the model in `run`. Nothing in it is a path of this machine.

    `config` is the run's config.yaml as a mapping. What a record does not say is called "not stated".
    """
    sets = _read_json(run / "data.json")
    body = [
        f"# {title}",
        _describe_training(config, base, parameters),
        *_describe_licences(base, sets),
        "## Data",
        *_make_data_table(sets),
        "## Evaluation",
        *_describe_evaluation(results.read_results(run)),
        "## Settings",
        *_describe_settings(config),
        "## Made with",
        *_describe_code(run),
    ]
    return f"---\n{_make_front_matter(base, sets)}---\n\n" + "\n\n".join(body) + "\n"


def _make_front_matter(base: BaseModel, sets: Mapping[str, Any]) -> str:
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base.licence:
        head["license"] = base.licence
    if base.is_on_hub:
        head["base_model"] = base.name
    sources = [_split_source(str(entry.get("source", "")))[0] for entry in sets.values()]
    if named := sorted({source for source in sources if _HUB_NAME.fullmatch(source) and not Path(source).suffix}):
        head["datasets"] = named
    head["tags"] = ["nemo-tapo", "reinforcement-learning"]
    return yaml.safe_dump(head, sort_keys=False)


def _describe_training(config: Mapping[str, Any], base: BaseModel, parameters: int) -> str:
    algorithm = str(config.get("algorithm", "tapo"))
    method = (
        "TAPO ([arXiv 2606.18844](https://arxiv.org/abs/2606.18844)): reinforcement learning that also learns from the "
        "model's own mistakes, corrected by itself"
        if algorithm == "tapo"
        else f"the algorithm `{algorithm}` of nemo_tapo"
    )
    return f"`{base.name}` trained with {method}. {parameters:,} parameters."


def _describe_licences(base: BaseModel, sets: Mapping[str, Any]) -> list[str]:
    own = f"The base model's licence is {base.licence}." if base.licence else "The base model's licence is not stated."
    return ["## Licence", f"{own} The data sets have their own, in the table below; this package is Apache-2.0."]


def _make_data_table(sets: Mapping[str, Any]) -> list[str]:
    if not sets:
        return ["The run kept no record of its data."]
    rows = ["| set | source | licence | rows | used |", "| --- | --- | --- | ---: | ---: |"]
    for name, entry in sets.items():
        source = _hide_folder(str(entry.get("source", UNKNOWN)))
        cells = (name, source, entry.get("licence") or UNKNOWN, entry.get("rows", ""), entry.get("usable", ""))
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return ["\n".join(rows)]


def _hide_folder(source: str) -> str:
    """Return a source without the folders of this machine.

    >>> _hide_folder("/data/me/train.jsonl"), _hide_folder("openai/gsm8k at 1234, main, train")
    ('train.jsonl', 'openai/gsm8k at 1234, main, train')
    """
    first, rest = _split_source(source)
    path = Path(first)
    return (path.name if path.is_absolute() or path.exists() else first) + rest


def _split_source(source: str) -> tuple[str, str]:
    """Split a source into the file, folder or repository and the rest: commit, config, split."""
    match = re.match(r"[^ ,]*", source)
    assert match is not None
    return match[0], source[match.end() :]


def _describe_evaluation(evaluations: Mapping[str, Any]) -> list[str]:
    if not evaluations:
        return ["The run was not evaluated."]
    lines = [results.format_markdown(evaluations).strip()]
    if "after" in evaluations:
        lines.append("`before` is the model that reinforcement learning started from, `after` is this one.")
    return lines


def _describe_settings(config: Mapping[str, Any]) -> list[str]:
    shown = [(label, value) for label, value in list_highlights(config) if label != "model"]
    table = "\n".join(["| setting | value |", "| --- | --- |", *(f"| {label} | {value} |" for label, value in shown)])
    decisive = yaml.safe_dump({name: config[name] for name in DECISIVE if name in config}, sort_keys=False)
    return [table, f"All that decide the numbers:\n\n```yaml\n{decisive}```"]


def _describe_code(run: Path) -> list[str]:
    lines = []
    for entry in read_code(run):
        commit = f"commit {entry['commit']}" if entry.get("commit") else "commit not known"
        changed = ", with changed files" if entry.get("changed") else ""
        lines.append(f"- nemo_tapo {entry.get('version')}, {commit}{changed}: `{entry.get('command')}`")
    parent = _read_json(run / "parent.json")
    if parent:
        name = Path(str(parent.get("folder", ""))).name
        lines.append(f"- went on from step {parent.get('step')} of the run `{name}`. {parent.get('learning_rate', '')}")
    return ["\n".join(lines) or "The run kept no record of its code."]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
