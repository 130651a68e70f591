"""`nemo-tapo judge`: DSR and ERR of evaluated responses, or the judge's agreement with human labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.sections import JudgeConfig
from nemo_tapo.utils.files import make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command; settings (judge.endpoint.url=...) may follow them."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--samples", nargs="+", metavar="FOLDER", help="an evaluation, or two whose difference is wanted: first, second"
    )
    what.add_argument("--agreement", type=Path, metavar="LABELS.jsonl", help="human labels to compare the judge with")
    parser.add_argument("--out", type=Path, help="folder of judge.json, table.md and verdicts.jsonl")
    parser.add_argument("--oracle", action="store_true", help="generated arithmetic: exact labels, no endpoint asked")


def settings_among(arguments: argparse.Namespace) -> list[str]:
    """What stands behind `--samples A B` and is a setting (key=value): argparse takes it for a folder."""
    return [word for word in arguments.samples or () if "=" in word]


def judge(arguments: argparse.Namespace) -> int:
    """Runs the command; returns 0. Raises ValueError for bad input, EndpointError when the judge is lost.

    The problems are those that the first evaluation's own config.yaml names; those of --config if it has none.
    """
    from nemo_tapo.judge.responses import config_of
    from nemo_tapo.runtime.registry import load_either

    cfg = load_either(arguments.config, [*settings_among(arguments), *arguments.overrides])
    if arguments.agreement:
        _agreement(arguments, cfg.judge)
        return 0
    folders = [Path(word) for word in arguments.samples if "=" not in word]
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"--samples takes one evaluation or two, not {len(folders)}.")
    if arguments.out is None and not arguments.dry_run:
        raise ValueError("say with --out where judge.json, table.md and verdicts.jsonl shall go.")
    from nemo_tapo.judge.measure import judge_samples, work_of

    work = work_of(config_of(folders[0]) or cfg, folders)
    if arguments.dry_run:
        print(plan(cfg.judge, work.lines, arguments.oracle))
    else:
        make_folder(arguments.out)  # before hours of judging
        judge_samples(cfg.judge, work, arguments.out, arguments.oracle)
    return 0


def _agreement(arguments: argparse.Namespace, cfg: JudgeConfig) -> None:
    """`--agreement`."""
    if arguments.oracle:
        raise ValueError("--agreement asks how good a judge is; the oracle is exact: leave --oracle out.")
    from nemo_tapo.judge.agreement import compare_with_labels, read_labels

    labelled = read_labels(arguments.agreement)
    if arguments.dry_run:
        print(plan(cfg, [f"{arguments.agreement}: {len(labelled)} labelled responses"], False))
        return
    if arguments.out is not None:
        make_folder(arguments.out)
    compare_with_labels(cfg, labelled, arguments.out)


def plan(cfg: JudgeConfig, work: Sequence[str], oracle: bool) -> str:
    """What --dry-run prints: the judge's settings, and what it would be asked."""
    import yaml

    settings = yaml.safe_dump({"judge": cfg.model_dump(mode="json")}, sort_keys=False)
    served = (
        f"judged by: {cfg.endpoint.url or 'no endpoint: set judge.endpoint.url'}",
        f"verdicts kept in: {cfg.cache}",
    )
    lines = [*work, *(("judged by: the oracle of the generated arithmetic",) if oracle else served)]
    return settings + "\n# plan of `nemo-tapo judge`\n" + "\n".join(f"#  {line}" for line in lines)
