"""From a sweep's name to runs: what each row sets, which rows are one run, folders, order, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_tapo.commands.sweep import format_job_list, parse_request
from nemo_tapo.config.load import load_config
from nemo_tapo.config.run_config import RunConfig, flatten_settings, list_known_keys
from nemo_tapo.evaluation import paper_results
from nemo_tapo.runtime.nemo_rl.config.checkout import find_source, get_source_hint
from nemo_tapo.sweeps.definition import list_sweep_names, read_sweep
from nemo_tapo.sweeps.expand import (
    SweepJob,
    SweepRequest,
    expand_sweeps,
    format_override,
    list_combinations,
    parse_seeds,
)

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "examples" / "configs"
BASE = CONFIGS / "sweep-tiny-1n0g.yaml"
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))

# What the paper says that the rows are; TAPO's own settings left out. (section 4.1, Tables 1 and 3 to 5)
OPSD = {
    "algorithm": "opsd", "opsd.divergence": "jsd", "opsd.beta": 0.5, "opsd.entry_clip": None, "opsd.teacher": "frozen",
    "loss.token_mean": True,
}  # fmt: skip
ORIGINALS, TERMS = {"tapo.reflection_baseline": "with_originals"}, {"loss.weighting": "terms"}
NO_OTS, NO_NEGATIVES, NO_DAE = {"tapo.suppression": False}, {"tapo.negatives": False}, {"tapo.decoupled": False}
GRPO = {"algorithm": "grpo"}
FULL = "runs/coldstart-full/hf"
TABLES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "table1": [("coldstart", {}), ("opsd", OPSD), ("grpo", GRPO), ("tapo", {})],
    "table1-direct": [
        ("base", {}), ("base-thinking", {"model.enable_thinking": True}), ("base-opsd", OPSD), ("base-grpo", GRPO),
        ("base-tapo", {}),
    ],
    "table2": [("grpo", GRPO), ("tapo", {})],
    "table3": [
        ("coldstart", {}), ("grpo", GRPO), ("reflective-sft", {"algorithm": "reflective_sft"}),
        ("full-reconstruction", {"tapo.full_reconstruction": True}), ("tapo", {}),
    ],
    "table3-tiny": [
        ("coldstart", {}), ("grpo", GRPO), ("reflective-sft", {"algorithm": "reflective_sft"}),
        ("coldstart-full", {"model.path": FULL}),
        ("full-own-coldstart", {"model.path": FULL, "tapo.full_reconstruction": True}), ("tapo", {}),
    ],
    "table4": [
        ("coldstart", {}), ("no-dae-no-ots-no-negatives", NO_DAE | NO_OTS | NO_NEGATIVES),
        ("no-ots-no-negatives", NO_OTS | NO_NEGATIVES), ("no-ots", NO_OTS), ("tapo", {}),
    ],
    "table5": [
        ("zpd-2-2-2", {"tapo.n_pos": 2, "tapo.n_neg": 2, "tapo.m_max": 2}),
        ("zpd-2-2-4", {"tapo.n_pos": 2, "tapo.n_neg": 2, "tapo.m_max": 4}), ("tapo", {}),
        ("zpd-1-5-3", {"tapo.n_pos": 1, "tapo.n_neg": 5, "tapo.m_max": 3}),
    ],
    "conditions": [("coldstart", {}), ("grpo", GRPO), ("tapo", {})],
    "countdown": [
        ("grpo", GRPO), ("tapo", {}), ("cool-synthesis", {"tapo.temperature": 0.6}),
        ("baseline-with-originals", {"tapo.reflection_baseline": "with_originals"}),
        ("uniform-reward", {"tapo.uniform_group": "reward"}), ("term-weights", {"loss.weighting": "terms"}),
        ("lambda-quarter", {"tapo.lambda": 0.25}), ("reflective-sft", {"algorithm": "reflective_sft"}),
        ("opsd", OPSD), ("coldstart", {}),
    ],
    "countdown-rare": [("grpo", GRPO), ("tapo", {}), ("with-originals-no-ots", ORIGINALS | NO_OTS), ("coldstart", {})],
    "countdown-silent": [
        ("grpo", GRPO), ("tapo", {}), ("no-ots", NO_OTS), ("with-originals-no-ots", ORIGINALS | NO_OTS),
        ("term-weights", TERMS), ("terms-with-originals-no-ots", TERMS | ORIGINALS | NO_OTS),
        ("terms-uniform-reward-no-ots", TERMS | {"tapo.uniform_group": "reward"} | NO_OTS),
        ("reflective-sft", {"algorithm": "reflective_sft"}), ("coldstart", {}),
    ],
    "figure3": [("tapo", {}), ("grpo", GRPO), ("opsd", OPSD), ("base-tapo", {})],
    "open-questions": [
        ("tapo", {}), ("no-prefix-loss", {"tapo.prefix_loss": "none"}),
        ("error-step-loss", {"tapo.prefix_loss": "error_step_only"}),
        ("turn-loss", {"tapo.prefix_loss": "turn_only"}),
        ("continue-prefix", {"tapo.construct": "continue_from_prefix", "tapo.prefix_loss": "none"}),
        ("uniform-reward", {"tapo.uniform_group": "reward"}),
        ("baseline-with-originals", {"tapo.reflection_baseline": "with_originals"}),
        ("ift-loss", {"tapo.ift_weight": 0.1}), ("lambda-quarter", {"tapo.lambda": 0.25}),
        ("term-weights", {"loss.weighting": "terms"}),
    ],
    "pipeline": [("tapo", {}), ("deferred", {"pipeline": "deferred"})],
    "weighting": [("grpo", GRPO), ("tapo", {}), ("term-weights", TERMS)],
    "opsd": [
        ("grpo", GRPO), ("opsd", OPSD), ("opsd-v3", OPSD | {"opsd.beta": 0.0, "opsd.entry_clip": 0.05}),
        (
            "opsd-sampled",
            {"algorithm": "opsd", "opsd.divergence": "sampled", "opsd.teacher": "frozen", "loss.token_mean": True},
        ),
    ],
}  # fmt: skip


def jobs(*words: str) -> tuple[SweepJob, ...]:
    return expand_sweeps(parse_request([*words, "base_model=assets/tiny-base"], BASE)).jobs


def flat(job: SweepJob) -> dict[str, Any]:
    return flatten_settings(job.cfg.model_dump(mode="json", by_alias=True))


def test_every_sweep_is_checked_here() -> None:
    assert list_sweep_names() == sorted(TABLES)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_row_sets_what_it_names_and_nothing_else(table: str) -> None:
    """Of every row, against TAPO from the cold start with seed 0 as the base file has it."""
    [plain] = [job for job in jobs("table2") if job.row.name == "tapo"]
    found = jobs(table)
    expected = [(name, of) for name, of in TABLES[table] if name != "base-thinking"]  # the tiny model cannot think
    assert [job.row.name for job in found] == [name for name, _ in expected]
    for job, (name, of) in zip(found, expected, strict=True):
        of = of | (
            {"model.path": "assets/tiny-base"} if name.startswith("base") and name != "baseline-with-originals" else {}
        )
        before = name in ("coldstart", "coldstart-full", "base")
        of = of | {"output": f"runs/sweep/{name}/seed-0", "parts": ["before"] if before else ["train", "after"]}
        a, b = flat(plain), flat(job)
        differ = {key for key in a if a[key] != b[key]}
        assert {key: b[key] for key in of} == of
        assert differ <= set(of), name


def test_names_stand_for_settings() -> None:
    """One name, one set of settings over all sweeps, and no two names for the same."""
    settings: dict[str, Any] = {}
    for table in list_sweep_names():
        sweep, of = read_sweep(table)
        for row in sweep.rows:
            told = (of[row.name], row.model, row.train)
            assert settings.setdefault(row.name, told) == told
    told_twice = [(a, b) for a in settings for b in settings if a < b and settings[a] == settings[b]]
    assert told_twice == []


def test_rows_of_several_tables_are_one_run() -> None:
    found = jobs("table1", "table3", "table4", "seeds=2")
    assert len({job.folder for job in found}) == len(found) == 2 * 9
    assert [job.name for job in found][:4] == ["coldstart/seed-0", "opsd/seed-0", "grpo/seed-0", "tapo/seed-0"]


def test_seed_by_seed_all_rows() -> None:
    found = jobs("table2", "seeds=[3,7]", "output=runs/x")
    assert [str(job.folder) for job in found] == [
        "runs/x/grpo/seed-3", "runs/x/tapo/seed-3", "runs/x/grpo/seed-7", "runs/x/tapo/seed-7",
    ]  # fmt: skip
    assert [job.cfg.seed for job in found] == [3, 3, 7, 7]
    assert [job.cfg.output for job in found] == [job.folder for job in found]
    for job in found:  # what is typed comes to what was checked
        assert load_config(BASE, job.overrides) == job.cfg
    assert parse_seeds("5") == (0, 1, 2, 3, 4)


def test_commas_run_every_value() -> None:
    found = jobs("table2", "optimizer.lr=1e-4,3e-4", "steps=7", "seeds=1")
    assert [(job.row.name, job.cfg.algorithm, job.cfg.optimizer.lr, job.cfg.steps) for job in found] == [
        ("grpo--optimizer.lr-0.0001", "grpo", 1e-4, 7), ("tapo--optimizer.lr-0.0001", "tapo", 1e-4, 7),
        ("grpo--optimizer.lr-0.0003", "grpo", 3e-4, 7), ("tapo--optimizer.lr-0.0003", "tapo", 3e-4, 7),
    ]  # fmt: skip
    row = found[2].row
    assert (row.label, row.paper) == ("Cold-start + GRPO, optimizer.lr=0.0003", "Cold-start + GRPO")
    assert (row.base_name, row.variant) == ("grpo", "optimizer.lr-0.0003")
    assert (
        len(list_combinations(["a=1,2", "b=[1,2]", "c='x,y'", "d=range(0,3)"])) == 6
    )  # brackets and quotes hold together


def test_values_that_would_share_a_folder_have_two() -> None:
    """A name cannot hold what a path can; a digest tells the two apart, whatever else is swept."""
    found = jobs("table2", "model.path=runs/cold/a,runs/cold-a")
    assert [str(job.cfg.model.path) for job in found] == ["runs/cold/a"] * 2 + ["runs/cold-a"] * 2
    assert len({job.folder for job in found}) == 4
    names = [job.row.name for job in found]
    assert re.fullmatch(r"grpo--model\.path-runs-cold-a-[0-9a-f]{6}", names[0])
    assert names[0] in [job.row.name for job in jobs("table2", "model.path=runs/b,runs/cold/a")]
    assert [job.row.name for job in jobs("table2", "steps=3,4")][::2] == ["grpo--steps-3", "grpo--steps-4"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/tmp/nothere.yaml"], "no sweep '/tmp/nothere.yaml': there is no file /tmp/nothere.yaml."),
        (["mine/table4"], "no sweep 'mine/table4': there is no file"),
        (["table4", "seeds=[3,7"], "seeds=[3,7: give how many"),
        (["table2", "steps=5,x"], "steps: Input should be a valid integer"),
        (["table2", "optimizer.lr=1e-4,-1"], "optimizer.lr: Input should be greater than 0"),
        (["tabel4"], "no sweep 'tabel4'; did you mean 'table4'?"),
        (["nowhere/mine.yaml"], "no sweep 'nowhere/mine.yaml'"),
        ([], "say which sweep: conditions, countdown, countdown-rare"),
        (["table4", "seeds=0"], "seeds=0: give how many"),
        (["table4", "seeds=[1,1]"], "seeds=[1,1]: give how many"),
        (["table4", "seeds=all"], "seeds=all: give how many"),
        (["table4", "seed=3"], "seed is the sweep's own: give seeds=5"),
        (["table4", "parts=[after]"], "parts is the sweep's own"),
        (["table4", "grpo.seed=3"], "grpo.seed is the sweep's own"),
        (["table4", "tapo.suppression=true"], "tapo.suppression is what the rows of table4 differ in"),
        (["table4", "algorithm=grpo"], "algorithm is what the rows of table4 differ in"),
        (["table4", "tapo.n_poss=3"], "did you mean 'tapo.n_pos'?"),
        (["table4", "steps=x"], "steps: Input should be a valid integer"),
    ],
)
def test_bad_words_are_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        jobs(*words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("title: x\nrows: []", "rows: Tuple should have at least 1 item"),
        ("title: x\nrows: [{name: a, label: A}, {name: a, label: B}]", "several rows are called a"),
        ("title: x\nrows: [{name: report, label: A}]", "no row can be called report"),
        ("title: x\nrows: [{name: a/b, label: A}]", "String should match pattern"),
        ("title: x\nrows: [{name: a, label: A, ablation: [no-ots]}]", "rows.0.ablation: Extra inputs"),
        ("title: x\nrows: [{name: a, label: A, ablations: [no-otts]}]", "row a: no ablation 'no-otts'"),
        (
            "title: x\nrows: [{name: a, label: A}, {name: b, label: B, settings: {tapo.m_maxx: 1}}]",
            "row b: unknown key 'tapo.m_maxx'; did you mean 'tapo.m_max'?",
        ),
        (
            "title: x\nrows: [{name: a, label: A}, {name: b, label: B, settings: {steps: x}}]",
            "row b: steps: Input should be a valid integer",
        ),
        (
            "title: x\nrows: [{name: a, label: A}, {name: b, label: B, settings: {tapo: {n_neg: 44}}}]",
            "row b: tapo.n_pos + tapo.n_neg = 46 is more than",
        ),
        (
            "title: x\nrows: [{name: a, label: A, settings: {seed: 3}}]",
            "row a of mine sets seed, which is the sweep's own: give seeds=5",
        ),
        ("title: x\nrows: [{name: a, label: A, settings: {output: x}}]", "row a of mine sets output"),
        ("title: x\nrows: [{name: a, label: A, settings: {parts: [after]}}]", "row a of mine sets parts"),
        (
            "title: x\nrows: [{name: a, label: A, model: base, settings: {model: {path: x}}}]",
            "row a of mine sets model.path",
        ),
        ("- x", "is not a mapping of settings"),
        ("{", "expected"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        jobs(str(tmp_path / "mine.yaml"))


def test_a_sweep_of_ones_own(tmp_path: Path) -> None:
    """Settings written in the row; ablations of the package; a name that another sweep uses otherwise is refused."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "title: x\nrows: [{name: a, label: A, ablations: [no-ots], settings: {tapo: {m_max: 1}, steps: 3}}]"
    )
    [job] = jobs(str(mine))
    assert (job.cfg.tapo.suppression, job.cfg.tapo.m_max, job.cfg.steps, job.cfg.algorithm) == (False, 1, 3, "tapo")
    mine.write_text("title: x\nrows: [{name: tapo, label: A, ablations: [no-ots]}]")
    with pytest.raises(ValueError, match="two sweeps have a row tapo with other settings"):
        jobs(str(mine), "table4")


def test_rows_that_cannot_be_are_left_out_and_named(tmp_path: Path) -> None:
    expanded = expand_sweeps(parse_request(["table5", "rollout.samples_per_query=5"], BASE))
    assert [job.row.name for job in expanded.jobs] == ["zpd-2-2-2", "zpd-2-2-4"]
    assert [note.split(" is left out")[0] for note in expanded.notes] == ["tapo", "zpd-1-5-3"]
    with pytest.raises(ValueError, match="row base starts from the base: say which, base_model=FOLDER"):
        expand_sweeps(parse_request(["table1-direct"], BASE))
    thinks = tmp_path / "thinks"
    thinks.mkdir()
    (thinks / "chat_template.jinja").write_text("{% if enable_thinking %}")
    for model, left_out in ((thinks, 0), (ROOT / "assets" / "tiny-base", 1), (Path("Org/of-the-hub"), 0)):
        notes = expand_sweeps(parse_request(["table1-direct", f"base_model={model}"], BASE)).notes
        assert len(notes) == left_out, notes


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_is_a_hydra_group_too(path: Path) -> None:
    """`+ablations=no-ots` sets what the file names; the file names settings that there are."""
    named = flatten_settings(yaml.safe_load(path.read_text()))
    assert set(named) <= set(list_known_keys(RunConfig))
    plain, with_it = (
        flatten_settings(load_config(BASE, more).model_dump(mode="json", by_alias=True))
        for more in ([], [f"+ablations={path.stem}"])
    )
    assert {key for key in plain if plain[key] != with_it[key]} <= set(named)
    assert {key: with_it[key] for key in named} == named


def test_ablations_add_up() -> None:
    cfg = load_config(BASE, ["+ablations=[no-ots,no-negatives]"])
    assert (cfg.tapo.suppression, cfg.tapo.negatives, cfg.tapo.decoupled) == (False, False, True)


def test_the_list_for_the_launcher() -> None:
    text = format_job_list(jobs("table2", "steps=7"))
    assert [yaml.safe_load(line) for line in text.splitlines()] == [
        ["steps=7", f"algorithm={name}", "parts=[train,after]", "seed=0", f"output=runs/sweep/{name}/seed-0"]
        for name in ("grpo", "tapo")
    ]


def test_nemo_rl_knows_the_settings_by_other_names() -> None:
    theirs = [
        ("seed", 3, "grpo.seed=3"), ("steps", 5, "grpo.max_num_steps=5"), ("algorithm", "grpo", "tapo.algorithm=grpo"),
        ("tapo.suppression", False, "tapo.suppression=false"), ("parts", ["before"], "tapo.parts=[before]"),
        ("model.path", "a b", 'policy.model_name="a b"'), ("loss.token_mean", True, "loss_fn.token_level_loss=true"),
        ("opsd.entry_clip", None, "tapo.opsd.entry_clip=null"), ("loss.kl_rows", 1, "tapo.loss.kl_rows=1"),
        ("model.enable_thinking", True, "policy.tokenizer.chat_template_kwargs.enable_thinking=true"),
    ]  # fmt: skip
    for key, value, text in theirs:
        assert format_override(key, value, cluster=True) == text
    assert format_override("seed", 3, cluster=False) == "seed=3"
    with pytest.raises(ValueError, match=r"optimizer\.lr cannot be set in a NeMo-RL config"):
        format_override("optimizer.lr", 1e-4, cluster=True)


def test_a_recipe_of_nemo_rl() -> None:
    if find_source() is None:
        pytest.skip(f"the cluster's recipes inherit from NeMo-RL's files: {get_source_hint()}")
    recipe = CONFIGS / "tapo-qwen3-8b-1n8g-megatron.yaml"
    words = ["table4", "policy.model_name=Qwen/Qwen3-8B", "output=/runs/s"]
    found = {job.row.name: job for job in expand_sweeps(parse_request(words, recipe)).jobs}
    assert list(found) == [name for name, _ in TABLES["table4"]]
    no_ots = found["no-ots"]
    assert (no_ots.cfg.tapo.suppression, no_ots.cfg.parts, no_ots.cfg.seed) == (False, ("train", "after"), 0)
    assert no_ots.cfg.output == Path("/runs/s/no-ots/seed-0")
    assert "checkpointing.checkpoint_dir=/runs/s/no-ots/seed-0/checkpoints" in no_ots.overrides
    plain = expand_sweeps(SweepRequest(("table1",), recipe))
    assert [note.split()[0] for note in plain.notes] == ["opsd"]  # full-vocabulary: NeMo-RL's parts do not have it


# ---- the paper's tables ----------------------------------------------------------------------------------------------


def test_the_papers_tables_agree_with_its_text() -> None:
    """Sections 4.2, 4.4 and 4.5: the differences that it states; and rows that stand in several tables."""

    def gain(benchmark: str, row: str, other: str) -> float:
        table = paper_results.TABLE_1[benchmark]
        return round(table[row][0] - table[other][0], 2)

    cold, direct = "Cold-start + ", "Qwen3-8B-Instruct + "
    assert gain("AIME 2024", cold + "TAPO", cold + "GRPO") == 9.58
    assert gain("AIME 2024", cold + "TAPO", cold + "OPSD") == 4.79
    assert gain("AIME 2025", cold + "TAPO", cold + "GRPO") == 0
    assert gain("AIME 2025", cold + "TAPO", cold + "OPSD") == 3.55
    assert gain("HMMT 2025", cold + "TAPO", cold + "GRPO") == 2.71
    assert gain("HMMT 2025", cold + "TAPO", cold + "OPSD") == 7.29
    assert (
        gain("AIME 2024", direct + "TAPO", direct + "GRPO")
        == gain("AIME 2024", direct + "TAPO", direct + "OPSD")
        == 8.54
    )
    assert gain("AIME 2025", direct + "TAPO", direct + "GRPO") == -0.83
    assert gain("HMMT 2025", direct + "TAPO", direct + "GRPO") == -2.29
    full, kept = (
        paper_results.TABLE_3["+ TAPO w/ full reconstruction"],
        paper_results.TABLE_3["+ TAPO w/ micro-reflective"],
    )
    assert [round(kept[i] - full[i], 2) for i in (0, 2, 4)] == [4.38, 2.71, 1.87]
    coldstart = tuple(
        v for rows in paper_results.TABLE_1.values() for v in (rows["Cold-start"][0], rows["Cold-start"][4])
    )
    tapo = tuple(v for rows in paper_results.TABLE_1.values() for v in (rows[cold + "TAPO"][0], rows[cold + "TAPO"][4]))
    assert paper_results.TABLE_3["Cold-start"] == paper_results.TABLE_4["Cold-start"] == coldstart
    assert paper_results.TABLE_4["+ TAPO"] == paper_results.TABLE_5["2 4 4"] == tapo


def test_every_figure_is_a_count_of_480() -> None:
    """30 problems x 16 runs: all values are multiples of 1/480, but for two that cannot come about."""
    tables = [v for rows in paper_results.TABLE_1.values() for values in rows.values() for v in values]
    tables += [
        v
        for t in (paper_results.TABLE_3, paper_results.TABLE_4, paper_results.TABLE_5)
        for values in t.values()
        for v in values
    ]
    off = sorted({v for v in tables if min(abs(v - 100 * round(v * 4.8 + d) / 480) for d in (-1, 0, 1)) > 0.0051})
    assert off == [31.52, 68.45]  # Table 1, AIME 2024: pass@2 of Qwen3-8B-Instruct, pass@4 with thinking


def test_every_row_of_a_table_has_the_papers_figures_beside_it() -> None:
    for table in list_sweep_names():
        sweep, _ = read_sweep(table)
        if sweep.paper in (None, "figure3", "table2"):
            continue
        for row in sweep.rows:
            found = paper_results.get_pass_rates(sweep.paper, row.paper or row.label)
            assert list(found) == ["AIME 2024", "AIME 2025", "HMMT 2025"], row.label
    assert paper_results.get_pass_rates("table4", "+ TAPO w/o OTS")["HMMT 2025"] == {1: 21.46, 5: 46.25}
    assert paper_results.get_pass_rates("table1", "Cold-start + OPSD")["AIME 2024"][4] == 75.62
    assert paper_results.get_pass_rates("table4", "of ones own") == paper_results.get_pass_rates(None, "TAPO") == {}
