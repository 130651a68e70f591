"""Settings: every key known, every fault a sentence, files inherit, overrides follow Hydra's grammar."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_tapo.config.load import load_config
from nemo_tapo.config.run_config import RunConfig, to_yaml, validate
from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl_config


def test_paper_settings_are_the_defaults() -> None:
    """Section 4.1: K=8, 32 queries, n_pos=2, n_neg=4, m_max=4, w in [0.01, 10], lambda=1, AdamW 1e-6."""
    cfg = RunConfig()
    assert (cfg.rollout.samples_per_query, cfg.rollout.queries_per_step) == (8, 32)
    assert (cfg.tapo.n_pos, cfg.tapo.n_neg, cfg.tapo.m_max) == (2, 4, 4)
    assert (cfg.tapo.w_min, cfg.tapo.w_max, cfg.tapo.weight) == (0.01, 10.0, 1.0)
    assert (cfg.optimizer.lr, cfg.optimizer.schedule) == (1e-6, "cosine")
    assert (cfg.loss.kl_coef, cfg.loss.updates_per_batch, cfg.rollout.temperature) == (0.0, 1, 1.0)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'tapo\.n_poss'; did you mean 'tapo\.n_pos'\?"):
        validate({"tapo": {"n_poss": 2}})
    with pytest.raises(ValueError, match=r"'tapo\.lamda'; did you mean 'tapo\.lambda'"):
        load_config(None, ["tapo.lamda=1"])
    with pytest.raises(ValueError, match=r"did you mean 'tapo\.m_max'"):
        load_config(None, ["m_max=4"])


def test_too_few_samples_for_the_thresholds() -> None:
    with pytest.raises(ValueError, match=r"n_pos \+ tapo\.n_neg = 6 is more than rollout\.samples_per_query = 4"):
        validate({"rollout": {"samples_per_query": 4}})
    validate({"rollout": {"samples_per_query": 4}, "algorithm": "grpo"})  # GRPO has no thresholds


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("steps=0", "steps: .*greater than 0"),
        ("steps=many", "steps: .*integer.*'many'"),
        ("rollout.temperature=0", "rollout.temperature"),
        ("tapo.uniform_group=other", "tapo.uniform_group.*'zero' or 'reward'"),
        ("steps", "^override 'steps' is not key=value"),
        (f"steps={'[' * 3000}{']' * 3000}", "^override 'steps=.*is nested too deeply"),
        ("tapo.w_min=20", "w_min = 20.0 is above"),
        ("loss.updates_per_batch=33", "updates_per_batch = 33 is more than rollout.queries_per_step = 32"),
        ("tapo.decoupled=false tapo.uniform_group=reward", "leaves no reflection group"),
        ("tapo.decoupled=false tapo.reflection_baseline=with_originals", "leaves no reflection group"),
        ("tapo.full_reconstruction=true tapo.prefix_loss=none", "keeps no prefix"),
        ("tapo.construct=continue_from_prefix", "set tapo.prefix_loss to none"),
        ("tapo.construct=continue_from_prefix tapo.prefix_loss=none tapo.prefix=prefilled", "tapo.prefix would change"),
        ("tapo.continue_at=half", "set that, or neither"),
        ("tapo.full_reconstruction=true tapo.min_kept_share=0.1", "keeps no prefix"),
        ("algorithm=reflective_sft loss.kl_coef=0.1", "likelihood alone; set loss.kl_coef to 0"),
        ("algorithm=reflective_sft tapo.ift_weight=0.1", "likelihood alone; set tapo.ift_weight to 0"),
        ("algorithm=reflective_sft tapo.lambda=0", "learns nothing"),
        ("algorithm=opsd loss.dual_clip=3", "OPSD's loss has no ratio to bound: leave loss.ratio"),
        ("algorithm=reflective_sft loss.ratio=sequence", "likelihood has no ratio to bound"),
        ("algorithm=opsd rollout.overlong=mask", "rollout.overlong leaves rows out of the policy gradient"),
        ("algorithm=opsd rollout.dynamic_sampling=2", "rollout.dynamic_sampling looks for advantages"),
        ("rollout.dynamic_sampling=1", "rollout.dynamic_sampling: Input should be greater than 1"),
        ("checkpoint.keep_best=true", "set evaluation.every"),
        ("loss.dual_clip=1", "loss.dual_clip: Input should be greater than 1"),
        ("loss.ratio=sequence loss.surrogate=cispo", "choose one"),
        ("loss.ratio=sequence loss.token_mean=true", "set loss.token_mean to false"),
        ("loss.surrogate=cispo", "set loss.token_mean to true"),
        ("loss.surrogate=cispo loss.token_mean=true loss.dual_clip=3", "set loss.dual_clip to null"),
        ("algorithm=opsd loss.updates_per_batch=2", "set loss.updates_per_batch to 1"),
        ("algorithm=opsd rollout.samples_per_query=1", "raise rollout.samples_per_query above 1, or set opsd"),
    ],
)
def test_a_bad_value_or_an_idle_one_is_a_sentence(overrides: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_config(None, overrides.split())


def test_idle_settings_of_other_algorithms_do_not_matter() -> None:
    load_config(None, ["algorithm=grpo", "tapo.decoupled=false", "tapo.uniform_group=reward"])
    load_config(None, ["algorithm=opsd", "opsd.privileged=solution", "rollout.samples_per_query=1"])
    load_config(None, ["loss.updates_per_batch=32", "loss.kl_coef=0.1", "tapo.ift_weight=0.1", "tapo.lambda=0"])
    load_config(None, ["rollout.queries_per_step=10", "loss.updates_per_batch=3"])  # of 4, 3 and 3 queries


def test_files_inherit_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("steps: 7\ntapo: {n_pos: 1, lambda: 0.5}\n")
    (tmp_path / "child.yaml").write_text("defaults: [base, _self_]\ntapo: {m_max: 3}\n")
    cfg = load_config(tmp_path / "child.yaml", ["tapo.n_pos=2", "seed=9"])
    assert (cfg.steps, cfg.tapo.n_pos, cfg.tapo.m_max, cfg.tapo.weight, cfg.seed) == (7, 2, 3, 0.5, 9)


def test_missing_file_names_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("steps: 1\n")
    with pytest.raises(ValueError, match=r"no config file .*demmo\.yaml; did you mean .*demo\.yaml\?"):
        load_config(tmp_path / "demmo.yaml")


def test_printed_config_reads_back(tmp_path: Path) -> None:
    cfg = load_config(None, ["tapo.decoupled=false", "seed=3"])
    (tmp_path / "again.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "again.yaml") == cfg


def test_fingerprint_ignores_speed_and_place() -> None:
    names = ("task", "tapo", "rollout", "loss", "optimizer")
    one = load_config(None, ["local.tp=2", "pipeline=barrier", "output=x"]).fingerprint(*names)
    assert one == RunConfig().fingerprint(*names)
    assert one != load_config(None, ["tapo.negatives=false"]).fingerprint(*names)


def test_a_setting_that_is_off_is_in_no_fingerprint() -> None:
    """So a checkpoint of a run without it goes on, and one of a run with it does not."""
    off = {
        "loss.dual_clip",
        "loss.ratio",
        "loss.surrogate",
        "rollout.overlong",
        "rollout.dynamic_sampling",
        "tapo.prefix",
    }
    assert not off & RunConfig().fingerprint("loss", "rollout", "tapo").keys()
    assert load_config(None, ["loss.ratio=sequence"]).fingerprint("loss")["loss.ratio"] == "sequence"


def test_a_file_is_read_by_its_whole_name(tmp_path: Path) -> None:
    (tmp_path / "run.yml").write_text("steps: 7\n")
    (tmp_path / "run.yaml").write_text("steps: 9\n")
    assert load_config(tmp_path / "run.yaml").steps == 9
    with pytest.raises(ValueError, match=r"run\.yml: the name of a config file ends in \.yaml"):
        load_config(tmp_path / "run.yml")


def test_without_a_file_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.yaml").write_text("steps: 77\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(None) == RunConfig()


@pytest.mark.parametrize(
    "content", [b"steps: \xff\n", b"~: 1\n", b"a: &a [*a]\n", b"defaults: 5\n", b"defaults: [broken, _self_]\n",
                b"a: " + b"[" * 3000 + b"]" * 3000 + b"\n"],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.yaml").write_bytes(content)
    assert is_nemo_rl_config(tmp_path / "broken.yaml") is False
    with pytest.raises(ValueError, match=r"broken\.yaml: .{4}|unknown key 'a'"):
        load_config(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    "override", ["optimizer.lr=inf", "tapo.lambda=inf", "seed=999999999999999999999999", "trajectories_per_step=-3"]
)
def test_numbers_that_mean_nothing_are_refused(override: str) -> None:
    with pytest.raises(ValueError, match=override.partition("=")[0]):
        load_config(None, [override])
