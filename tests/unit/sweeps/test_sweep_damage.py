"""A sweep's folder with an odd or damaged file in it: that run does not count, or a sentence; the others go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_tapo.commands.sweep import parse_request, save_definitions
from nemo_tapo.sweeps import state
from nemo_tapo.sweeps.expand import SweepJob, expand_sweeps
from nemo_tapo.sweeps.report.read_runs import choose_sweeps, read_sweep_results
from nemo_tapo.sweeps.report.write_report import write_sweep_report
from tests.helpers.sweep_samples import write_run

BASE = Path(__file__).parents[3] / "examples" / "configs" / "sweep-tiny-1n0g.yaml"
KINDS = [["right", "wrong"], ["wrong", "wrong"]]
CONFIG, AFTER = "config.yaml", "evaluation/after"


def unfinished(text: str) -> Callable[[Path], object]:
    """A half-way run with this text for its config.yaml."""

    def write(run: Path) -> None:
        (run / "evaluation.json").unlink()
        (run / CONFIG).write_text(text)

    return write


def text(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


def failed(run: Path) -> None:
    (run / "evaluation.json").unlink()
    (run / "failed.json").write_text("")


def cut(run: Path) -> None:
    """The beginning of its config.yaml, as a kill leaves it: YAML of fewer settings."""
    lines = (run / CONFIG).read_text().splitlines(keepends=True)
    (run / CONFIG).write_text("".join(lines[: len(lines) // 2]))


def cut_in_a_line(run: Path) -> None:
    (run / CONFIG).write_text((run / CONFIG).read_text()[:-3])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "config empty": (text(CONFIG, ""), "config.yaml: it is empty or cut short"),
    "config cut": (cut, "config.yaml: it is empty or cut short"),
    "config cut in a line": (cut_in_a_line, "config.yaml: it is empty or cut short"),
    "config no YAML": (text(CONFIG, "steps: ["), "config.yaml: "),
    "config not text": (lambda run: (run / CONFIG).write_bytes(b"\xff\xfe\n"), "config.yaml: "),
    "config gone": (lambda run: (run / CONFIG).unlink(), "config.yaml is gone"),
    "half-way, config empty": (unfinished(""), "config.yaml: it is empty or cut short"),
    "half-way, config no YAML": (unfinished("steps: ["), "config.yaml: "),
    "half-way, unknown setting": (unfinished("stepz: 3\ncheckpoint: {}\n"), "config.yaml: unknown key 'stepz'"),
    "failed.json empty": (failed, "failed.json is not JSON"),
    "evaluation.json a list": (text("evaluation.json", "[]"), "evaluation.json holds no mapping"),
    "evaluation.json with a list": (text("evaluation.json", '{"after": []}'), "evaluation.json has no mapping under"),
    "samples gone": (lambda run: shutil.rmtree(run / AFTER), f"{AFTER} has no settings.json: its samples are gone"),
    "settings.json torn": (text(f"{AFTER}/settings.json", '{"runs'), f"{AFTER}/settings.json is not JSON"),
    "settings.json bare": (text(f"{AFTER}/settings.json", "{}"), f"{AFTER}/settings.json is damaged"),
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_run(tmp_path / "out", "grpo", 0, KINDS)
    for seed in (0, 1, 2):
        write_run(tmp_path / "out", "tapo", seed, KINDS)
    return tmp_path / "out"


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_does_not_count_and_its_siblings_do(output: Path, name: str) -> None:
    """The first seed's too, with which the others are compared."""
    damage, reason = DAMAGES[name]
    run = output / "tapo" / "seed-0"
    damage(run)
    [sweep] = choose_sweeps(output, ["table2"])
    found = read_sweep_results(output, sweep)
    assert [outcome.seeds for outcome in found.outcomes] == [(0,), (1, 2)]
    [left_out] = found.excluded
    assert (left_out.seed, left_out.evaluation) == (0, None)
    assert reason in left_out.missing
    told = write_sweep_report(output, ["table2"])
    assert f"{run}: does not count: " in told
    assert ".." not in told


def test_what_is_no_run_is_not_looked_at(output: Path) -> None:
    for name in ("seed-0.bak", "seed-", "seed-x", "seed-01"):
        shutil.copytree(output / "tapo" / "seed-0", output / "tapo" / name)
    (output / "tapo" / "seed-7").write_text("a file")
    [sweep] = choose_sweeps(output, ["table2"])
    found = read_sweep_results(output, sweep)
    assert found.outcomes[1].seeds == (0, 1, 2)
    assert found.excluded == ()


@pytest.mark.parametrize("damage", ["", "rows: [", "rows:\n"])
def test_a_damaged_definition_is_named_and_the_other_tables_are_made(output: Path, damage: str) -> None:
    expanded = expand_sweeps(parse_request(["table2", "table1", f"output={output}"], BASE))
    save_definitions(output, expanded)
    path = output / "sweeps" / "table1.yaml"
    path.write_text(damage)
    told = write_sweep_report(output)
    assert "Capability internalization (table2)" in told
    assert told.splitlines()[-1].startswith(f"{path} is damaged (")
    assert "Main results" in write_sweep_report(output, ["table1"])  # the package's, by its name
    with pytest.raises(ValueError, match=r"sweeps/table1\.yaml is damaged .*: remove it"):
        save_definitions(output, expanded)


def job_in(folder: Path) -> SweepJob:
    [job] = [
        job for job in expand_sweeps(parse_request(["table2", f"output={folder}"], BASE)).jobs if job.row.name == "tapo"
    ]
    return job


def test_the_command_ends_in_a_sentence(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every damaged file is named; none is read as a run with all defaults."""
    from nemo_tapo.cli import main

    job = job_in(output)
    (job.folder / CONFIG).write_text("")
    with pytest.raises(ValueError, match=r"seed-0/config\.yaml: it is empty or cut short"):
        state.read_stored_config(job.folder)
    (output / "grpo" / "seed-0" / CONFIG).write_text("steps: [")
    assert main(["sweep", "table2", f"output={output}", "--config", str(BASE), "--dry-run"]) == 2
    told = capfd.readouterr().err
    assert f"{job.folder / CONFIG}: it is empty or cut short. Remove it: the run writes it anew." in told
    assert f"{output / 'grpo' / 'seed-0' / CONFIG}: " in told
    assert main(["sweep", "table2", "seeds=[3,7", "--config", str(BASE), "--dry-run"]) == 2
    assert "seeds=[3,7: give how many" in capfd.readouterr().err


def test_seeds_that_were_asked_for_and_are_not_there(output: Path) -> None:
    """The union of all calls, by row; a file of an earlier version knows none."""
    save_definitions(output, expand_sweeps(parse_request(["table2", "seeds=2", f"output={output}"], BASE)))
    save_definitions(output, expand_sweeps(parse_request(["table2", "seeds=[1,4]", f"output={output}"], BASE)))
    save_definitions(output, expand_sweeps(parse_request(["table2", "seeds=1", "steps=3,4", f"output={output}"], BASE)))
    [sweep] = choose_sweeps(output)
    assert {row.name: row.seeds for row in sweep.rows} == {
        "grpo--steps-3": (0,), "tapo--steps-3": (0,), "grpo--steps-4": (0,), "tapo--steps-4": (0,),
        "grpo": (0, 1, 4), "tapo": (0, 1, 4),
    }  # fmt: skip
    told = write_sweep_report(output).splitlines()
    assert "grpo: seeds 1, 4 were asked for and are not there." in told
    assert "tapo: seed 4 was asked for and is not there." in told
    assert "tapo--steps-3: seed 0 was asked for and is not there." in told
    path = output / "sweeps" / "table2.yaml"
    kept = "".join(line for line in path.read_text().splitlines(keepends=True) if "seeds" not in line)
    path.write_text("\n".join(line for line in kept.splitlines() if not line.startswith("  - ")) + "\n")
    assert "asked for" not in write_sweep_report(output)


def test_seeds_of_a_row_that_is_not_trained_are_of_the_same_weights(tmp_path: Path) -> None:
    for seed, weights in enumerate(("a" * 64, "a" * 64, "b" * 64)):
        for row, name in (("coldstart", "before"), ("tapo", "after")):
            run = write_run(tmp_path, row, seed, KINDS, name=name)
            path = run / "evaluation" / name / "settings.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "model": {"weights": weights}}))
    [sweep] = choose_sweeps(tmp_path, ["conditions"])
    found = read_sweep_results(tmp_path, sweep)
    assert {outcome.row.name: outcome.seeds for outcome in found.outcomes} == {
        "coldstart": (0, 1), "grpo": (), "tapo": (0, 1, 2),  # a trained row's weights are each seed's own
    }  # fmt: skip
    [run_] = found.excluded
    assert run_.missing == (
        f"another model than {tmp_path / 'coldstart' / 'seed-0'} (model.weights: {'a' * 12}... -> {'b' * 12}...)"
    )


def test_a_finished_run_counts_while_more_is_evaluated(output: Path) -> None:
    """settings.json says what was asked for last, evaluation.json what was finished."""
    for row in ("grpo", "tapo"):
        path = output / row / "seed-0" / AFTER / "settings.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "runs": 4}))
    [sweep] = choose_sweeps(output, ["table2"])
    found = read_sweep_results(output, sweep)
    assert [outcome.seeds for outcome in found.outcomes] == [(0,), (0, 1, 2)]
    assert found.excluded == ()
    told = write_sweep_report(output, ["table2"])
    assert "DSR and ERR (Table 2)" in told  # of the same samples
    assert "no DSR and ERR" not in told
