"""`nemo-tapo judge`: measure DSR and ERR of evaluated responses, or the judge's agreement with human labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.sections import JudgeConfig
from nemo_tapo.utils.files import make_output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command. Settings (judge.endpoint.url=...) may follow them."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--samples", nargs="+", metavar="FOLDER", help="an evaluation, or two whose difference is wanted: first, second"
    )
    source.add_argument("--agreement", type=Path, metavar="LABELS.jsonl", help="human labels to compare the judge with")
    parser.add_argument("--out", type=Path, help="folder of judge.json, table.md and verdicts.jsonl")
    parser.add_argument("--oracle", action="store_true", help="generated tasks: exact labels, no endpoint asked")


def settings_in_samples(arguments: argparse.Namespace) -> list[str]:
    """Return the settings (key=value) that follow `--samples A B`, which argparse takes for folders.

    >>> settings_in_samples(argparse.Namespace(samples=["runs/a", "judge.seed=1"]))
    ['judge.seed=1']
    """
    return [word for word in arguments.samples or () if "=" in word]


def judge(arguments: argparse.Namespace) -> int:
    """Run the command and return 0. Raises ValueError for bad input, EndpointError when the judge is lost.

    The problems are those that the first evaluation's config.yaml names, or those of --config if it has no such file.
    """
    from nemo_tapo.judge.responses import read_config
    from nemo_tapo.runtime.registry import load_run_config

    cfg = load_run_config(arguments.config, [*settings_in_samples(arguments), *arguments.overrides])
    if arguments.agreement:
        _run_agreement(arguments, cfg.judge)
        return 0
    folders = [Path(word) for word in arguments.samples if "=" not in word]
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"--samples takes one evaluation or two, not {len(folders)}.")
    if arguments.out is None and not arguments.dry_run:
        raise ValueError("say with --out where judge.json, table.md and verdicts.jsonl shall go.")
    from nemo_tapo.judge.measure import collect_workload, judge_samples

    work = collect_workload(read_config(folders[0]) or cfg, folders)
    if arguments.dry_run:
        print(describe_judging(cfg.judge, work.summary_lines, arguments.oracle))
    else:
        make_output_folder(arguments.out)  # fails now rather than after hours of judging
        judge_samples(cfg.judge, work, arguments.out, arguments.oracle)
    return 0


def _run_agreement(arguments: argparse.Namespace, cfg: JudgeConfig) -> None:
    """Run `--agreement`. Raises ValueError together with --oracle."""
    if arguments.oracle:
        raise ValueError("--agreement asks how good a judge is; the oracle is exact: leave --oracle out.")
    from nemo_tapo.judge.agreement import compare_with_labels, read_labels

    labelled = read_labels(arguments.agreement)
    if arguments.dry_run:
        print(describe_judging(cfg, [f"{arguments.agreement}: {len(labelled)} labelled responses"], False))
        return
    if arguments.out is not None:
        make_output_folder(arguments.out)
    compare_with_labels(cfg, labelled, arguments.out)


def describe_judging(cfg: JudgeConfig, work: Sequence[str], oracle: bool) -> str:
    """Return what --dry-run prints: the judge's settings, and what it would be asked."""
    import yaml

    settings = yaml.safe_dump({"judge": cfg.model_dump(mode="json")}, sort_keys=False)
    served = (
        f"judged by: {cfg.endpoint.url or 'no endpoint: set judge.endpoint.url'}",
        f"verdicts kept in: {cfg.cache}",
    )
    lines = [*work, *(("judged by: the oracle of the generated task",) if oracle else served)]
    return settings + "\n# plan of `nemo-tapo judge`\n" + "\n".join(f"#  {line}" for line in lines)
