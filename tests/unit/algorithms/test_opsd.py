"""OPSD on the scripted runtime: who teaches whom with what, the counters, the loop, the settings and their refusals."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_tapo.algorithms.opsd import LEFT_OUT_REASONS, OPSD, PROMPT, fill_privileged_prompt
from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.batch import collate
from nemo_tapo.config.load import load_config
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import RunConfig, rl_fingerprint, validate
from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.query_order import QueryOrder, add_prompts
from nemo_tapo.datasets.read import read_dataset
from nemo_tapo.equations.divergence import DivergenceRules
from nemo_tapo.equations.teacher import add_teacher_logprobs, make_teacher_batch
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import next_token_scores
from nemo_tapo.losses.distillation import DivergenceLoss, SampledTokenLoss
from nemo_tapo.metrics import Mean, reduce_parts
from nemo_tapo.runtime.batch_sharding import deal_rows, select_and_pad
from nemo_tapo.runtime.local.hf_checkpoint import require_same_architecture
from nemo_tapo.runtime.nemo_rl.config import cluster_run as nemo_config
from nemo_tapo.runtime.nemo_rl.logit_loss import LogitLoss, to_numbers
from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime, arithmetic_script
from nemo_tapo.stages.dry_run import plan_command
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.train import train
from nemo_tapo.types import Completion, Experience, Grade, Group, Kind, Query, Rollout, Row
from nemo_tapo.utils.errors import Stopped
from nemo_tapo.utils.signals import Stop
from tests.helpers.cluster_files import cluster_file
from tests.unit.test_train import Memory, settings, weights

torch.set_num_threads(1)
CONFIGS = Path(__file__).parents[3] / "examples" / "configs"
PRESETS = ("opsd-v1", "opsd-v3", "opsd-sampled")


def taught(**changes: Any) -> RunConfig:
    return settings(algorithm="opsd", **{"loss__token_mean": True, **changes})


def run(cfg: RunConfig, folder: Path, stop: Stop | None = None) -> tuple[Memory, ScriptedRuntime]:
    runtime, memory = ScriptedRuntime(arithmetic_script), Memory()
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    usable, _ = add_prompts(task.train_queries()[:60], runtime.tokenizer, 1000)
    order = QueryOrder(usable, cfg.rollout.queries_per_step, cfg.seed)
    loop = LoopConfig(
        folder,
        cfg.steps,
        cfg.optimizer,
        cfg.loss,
        checkpoint_every=2,
        fingerprint=rl_fingerprint(cfg),
    )
    algorithm = make_algorithm(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    asyncio.run(train(loop, algorithm, runtime, order.queries, memory, stop or Stop()))
    return memory, runtime


# ---- who is taught with what -------------------------------------------------------------------------------------


def group(*rewards: float, solution: str = "", uid: str = "q") -> Group:
    """Rollouts `text 0`, `text 1`, ... with these rewards."""
    query = Query(uid, "1+1?", "2", (2, 49, 3), solution=solution)
    rollouts = [
        Rollout(query, i, Completion((50 + i, 1), f"text {i}", False), Grade(reward, "right" if reward else "wrong"))
        for i, reward in enumerate(rewards)
    ]
    return Group(query, tuple(rollouts))


def algorithm(cfg: RunConfig) -> OPSD:
    runtime = ScriptedRuntime(arithmetic_script)
    made = make_algorithm(cfg, Tools(runtime.generator, runtime.tokenizer, ArithmeticTask(cfg.task.arithmetic, 0)))
    assert isinstance(made, OPSD)
    return made


def left_out(cfg: RunConfig, given: Group) -> list[str | None]:
    opsd = algorithm(cfg)
    return [opsd.make_lesson(r, given, 0).left_out for r in given.rollouts]


def test_the_teacher_is_never_told_the_rollout_it_judges() -> None:
    opsd, given = algorithm(taught()), group(1, 0, 1, 0)
    for step in range(20):
        told = [opsd.make_lesson(r, given, step).reference for r in given.rollouts]
        assert told[0] == "q/2" and told[2] == "q/0"
        assert set(told[1::2]) <= {"q/0", "q/2"}
    chosen = {opsd.make_lesson(given.rollouts[1], given, step).reference for step in range(20)}
    assert chosen == {"q/0", "q/2"}


def test_the_choice_depends_on_seed_step_and_uid_alone() -> None:
    given = group(1, 1, 1, 1, 0)
    told = [algorithm(taught()).make_lesson(given.rollouts[4], given, step) for step in range(8)]
    assert told == [algorithm(taught()).make_lesson(given.rollouts[4], given, step) for step in range(8)]
    other = [algorithm(taught(seed=1)).make_lesson(given.rollouts[4], given, step) for step in range(8)]
    assert told != other


def test_why_a_rollout_is_left_out() -> None:
    assert left_out(taught(), group(0, 0)) == ["none_correct"] * 2
    assert left_out(taught(), group(0, 1)) == [None, "only_itself"]
    solution = taught(opsd__privileged="solution")
    assert left_out(solution, group(0, 1)) == ["no_solution"] * 2
    assert left_out(solution, group(0, 0, solution="It is 2.")) == [None, None]
    short = taught(opsd__prompt="{reference}", opsd__privileged="solution", model__max_length=40)
    assert left_out(short, group(0, solution="x" * 36)) == [None]  # 36 + 2 of the chat + 2 of the response
    assert left_out(short, group(0, solution="x" * 37)) == ["prompt_too_long"]


def test_the_privileged_prompt() -> None:
    text = fill_privileged_prompt(PROMPT, "Is {reference} a {question}?", "{question} \\boxed{2}\n")
    assert "Problem: Is {reference} a {question}?\n" in text  # what is put in is not looked at again
    assert "Begin ===\n{question} \\boxed{2}\n=== Reference Solution End" in text
    assert text.endswith("\\boxed{}.")


def test_rows_are_grpos_with_a_teachers_prompt() -> None:
    cfg = taught(opsd__prompt="{question}|{reference}")
    opsd, given = algorithm(cfg), group(1, 0, 0)
    lessons = tuple(opsd.make_lesson(r, given, 0) for r in given.rollouts)
    experience = Experience(groups=(given,), lessons=lessons)
    rows = opsd.make_rows(experience)
    assert [row.uid for row in rows] == ["q/1", "q/2"]
    for row in rows:
        assert row.prompt_ids == given.query.prompt_ids and row.kind is Kind.ORIGINAL
        assert row.teacher_prompt_ids == opsd.tools.tokenizer.chat("1+1?|text 0")
    metrics = opsd.compute_metrics(experience, rows)
    assert metrics["opsd/rows"] == 2 and metrics["opsd/left_out/only_itself"] == 1


# ---- tensors -----------------------------------------------------------------------------------------------------


def two_rows() -> list[Row]:
    return [
        Row("a", "a", Kind.ORIGINAL, (5,), (6, 7, 8), teacher_prompt_ids=(9, 10, 11)),
        Row("b", "b", Kind.ORIGINAL, (5, 5), (6,), teacher_prompt_ids=(9, 9, 9, 9, 9)),
    ]


def test_the_teachers_rows_travel_with_the_students() -> None:
    batch = collate(two_rows(), 0)
    assert batch.teacher_input_ids is not None and batch.teacher_input_lengths is not None
    assert batch.teacher_input_ids.tolist() == [[9, 10, 11, 6, 7, 8], [9, 9, 9, 9, 9, 6]]
    second = batch.select([1])
    assert second.input_ids.tolist() == [[5, 5, 6]]
    assert second.teacher_input_ids is not None and second.teacher_input_ids.shape == (1, 6)
    parts = [select_and_pad(batch, share, 2) for share in deal_rows(batch.input_lengths.tolist(), 3)]
    for part in parts:
        assert part.teacher_input_ids is not None and part.teacher_input_lengths is not None
        assert part.teacher_input_ids.shape[0] == part.rows == 2
        assert bool((part.teacher_input_lengths >= 2).all())
    assert sum(float(p.sample_mask.sum()) for p in parts) == 2


def test_scores_of_the_teachers_rows_come_to_the_students_columns() -> None:
    batch = collate([replace(two_rows()[0], masked_tokens=1), two_rows()[1]], 0)
    asked = make_teacher_batch(batch)
    assert asked.token_mask.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]
    scores = torch.arange(12.0).reshape(2, 6)
    known = add_teacher_logprobs(batch, scores)
    assert known.teacher_logprobs is not None
    assert known.teacher_logprobs.tolist() == [[0, 0, 4, 5], [0, 0, 11, 0]]
    assert known.teacher_input_ids is None and known.teacher_input_lengths is None


def sampled_batch() -> Any:
    torch.manual_seed(0)
    batch = collate(two_rows(), 0, token_mean=True)
    return replace(
        batch,
        teacher_logprobs=-3 * torch.rand(batch.input_ids.shape),
        teacher_input_ids=None,
        teacher_input_lengths=None,
    )


def test_the_sampled_token_by_plain_autograd() -> None:
    """-A log p with A = log p_T - log p_S held constant, the mean over the four tokens; temperature 1.3."""
    batch, logits = sampled_batch(), torch.randn(2, 4, 16, requires_grad=True)
    output = SampledTokenLoss(1.3)(logits, batch, VocabShard(0, 16))
    output.loss.backward()  # type: ignore[no-untyped-call]
    leaf = logits.detach().double().requires_grad_()
    logp = torch.log_softmax(leaf / 1.3, -1)
    expected, advantages = torch.zeros((), dtype=torch.float64), []
    for row, column in ((0, 1), (0, 2), (0, 3), (1, 2)):
        own = logp[row, column - 1, batch.input_ids[row, column]]
        advantage = float(batch.teacher_logprobs[row, column]) - float(own.detach())
        expected = expected - advantage * own / 4
        advantages.append(advantage)
    expected.backward()  # type: ignore[no-untyped-call]
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(logits.grad.double(), leaf.grad, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
    advantage_part = output.metrics["opsd/advantage"]
    assert isinstance(advantage_part, Mean) and advantage_part.count == 4
    assert advantage_part.total == pytest.approx(sum(advantages), rel=1e-5)


def test_nemo_rls_workers_make_the_same_of_scores() -> None:
    batch, logits = sampled_batch(), torch.randn(2, 4, 16)
    ours = SampledTokenLoss(1.3)(logits, batch, VocabShard(0, 16))
    wrapped = LogitLoss(SampledTokenLoss(1.3), None, None, logits_temperature=1.3)
    loss, metrics = wrapped(batch.as_dict(), logits=logits / 1.3)
    torch.testing.assert_close(loss, ours.loss)
    expected = to_numbers(ours.metrics)
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-5)


def test_what_the_loop_watches_goes_on_under_a_divergence() -> None:
    """Entropy, ratio, KL and engine gap as GRPO's loss reports them on the same rows."""
    torch.manual_seed(1)
    batch, logits, vocab = collate(two_rows(), 0), torch.randn(2, 4, 16), VocabShard(0, 16)
    other = torch.randn(batch.input_ids.shape) - 3
    batch = replace(
        batch, prev_logprobs=other, reference_policy_logprobs=other, reference_mask=torch.ones(2),
        generation_logprobs=other, generation_mask=torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    output = DivergenceLoss(DivergenceRules(0.5, None, 1.1))(logits, batch, vocab, torch.randn(4, 16))
    found = reduce_parts([output.parts])
    logp, entropy = next_token_scores(logits, batch, vocab, temperature=1.1)
    assert entropy is not None
    mask = batch.token_mask > 0
    gap = other - logp
    expected = {
        "entropy": entropy[mask].mean(),
        "ratio_deviation": ((-gap[mask]).exp() - 1).abs().mean(),
        "kl_ref": (gap[mask].exp() - gap[mask] - 1).mean(),
        "engine_gap": gap[0][mask[0]].abs().mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4), name


# ---- the loop ----------------------------------------------------------------------------------------------------


VARIANTS: tuple[dict[str, Any], ...] = (
    {"opsd__beta": 0.5, "opsd__entry_clip": None},
    {"opsd__beta": 0.0, "opsd__entry_clip": 0.05},
    {"opsd__divergence": "sampled"},
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("teacher", ["frozen", "live"])
def test_every_rollout_is_accounted_for(tmp_path: Path, variant: dict[str, Any], teacher: str) -> None:
    cfg = taught(**variant, opsd__teacher=teacher)
    memory, _ = run(cfg, tmp_path)
    for metrics, rows in zip(memory.metrics, memory.rows, strict=True):
        dropped = sum(metrics[f"opsd/left_out/{reason}"] for reason in LEFT_OUT_REASONS)
        assert metrics["opsd/rows"] + dropped == metrics["opsd/rollouts"] == 48
        assert metrics["rows"] == metrics["opsd/rows"] == len(rows)
        assert metrics["ratio_deviation"] <= 1e-6
        assert ("time/teacher" in metrics) == (cfg.opsd.divergence == "sampled")
    assert memory.metrics[0]["kl_ref"] == pytest.approx(0, abs=1e-6)


def test_queries_rollouts_and_seeds_are_grpos(tmp_path: Path) -> None:
    """The scripted policy does not learn, so all steps compare."""
    opsd, a = run(taught(rollout__logprobs="never"), tmp_path / "opsd")
    grpo, b = run(settings(algorithm="grpo", rollout__logprobs="never"), tmp_path / "grpo")
    assert [e.groups for e in opsd.experience] == [e.groups for e in grpo.experience]
    assert a.generator.request_uids == b.generator.request_uids


def test_a_copy_of_the_student_teaches_nothing_and_another_model_does(tmp_path: Path) -> None:
    """The scripted actor sees one token back, so the teacher's longer prompt alone changes nothing but the first."""
    cfg = taught(opsd__entry_clip=None, steps=1)
    memory, _ = run(cfg, tmp_path / "own")
    assert memory.metrics[0]["opsd/divergence"] == pytest.approx(0, abs=1e-5)
    other = ScriptedRuntime(arithmetic_script, seed=5)
    asyncio.run(other.actor.export(tmp_path / "teacher"))
    runtime = ScriptedRuntime(arithmetic_script)
    asyncio.run(runtime.actor.set_teacher(tmp_path / "teacher"))
    asyncio.run(runtime.actor.configure(cfg.optimizer, 30))
    batch = collate(memory.rows[0], 0, token_mean=True)
    loss = DivergenceLoss(DivergenceRules(0.0))
    losses = [asyncio.run(runtime.actor.train(batch, loss)).loss for _ in range(30)]
    assert losses[0] > 0.05
    assert losses[-1] < 0.5 * losses[0]


def test_resume_goes_on_bit_for_bit(tmp_path: Path) -> None:
    cfg = taught(rollout__logprobs="never")  # a process asks for more of them at its first step
    whole, a = run(cfg, tmp_path / "whole")

    class StopAfterTwo(Stop):
        def check(self, what: str) -> None:
            if "step 2" in what:
                raise Stopped(2, what)

    with pytest.raises(Stopped, match="checkpoint of step 2"):
        run(cfg, tmp_path / "parts", StopAfterTwo())
    rest, b = run(cfg, tmp_path / "parts")
    assert rest.steps == [3, 4] and rest.rows == whole.rows[2:]
    assert torch.equal(weights(a), weights(b))
    with pytest.raises(ValueError, match=r"opsd\.beta: 0\.0 -> 1\.0"):
        run(taught(opsd__beta=1.0, rollout__logprobs="never"), tmp_path / "parts")


def test_a_step_without_a_right_rollout_teaches_nothing(tmp_path: Path) -> None:
    wrong, runtime = taught(steps=1), ScriptedRuntime(lambda prompt, request: "no idea")
    task = ArithmeticTask(wrong.task.arithmetic, 0)
    opsd = make_algorithm(wrong, Tools(runtime.generator, runtime.tokenizer, task))
    usable, _ = add_prompts(task.train_queries()[:6], runtime.tokenizer, 1000)
    memory, before = Memory(), weights(runtime).clone()
    loop = LoopConfig(tmp_path, 1, wrong.optimizer, wrong.loss)
    asyncio.run(train(loop, opsd, runtime, lambda step: usable, memory, Stop()))
    assert memory.metrics[0]["opsd/left_out/none_correct"] == 48 and memory.rows == [[]]
    assert memory.metrics[0]["grad_norm"] == 0.0
    torch.testing.assert_close(weights(runtime), before)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_presets_are_those_of_the_paper_and_change_nothing_else() -> None:
    """As a group on any configuration (the values: arXiv 2601.18734, versions 1 and 3)."""
    base = load_config(CONFIGS / "grpo-tiny-1n0g.yaml")
    found = {name: load_config(CONFIGS / "grpo-tiny-1n0g.yaml", [f"+opsd={name}"]) for name in PRESETS}
    v1, v3, sampled = (found[name].opsd for name in PRESETS)
    assert (v1.divergence, v1.beta, v1.entry_clip, v1.teacher) == ("jsd", 0.5, None, "frozen")
    assert (v3.divergence, v3.beta, v3.entry_clip, v3.teacher) == ("jsd", 0.0, 0.05, "frozen")
    assert (sampled.divergence, sampled.teacher) == ("sampled", "frozen")
    for cfg in found.values():
        assert cfg.algorithm == "opsd" and cfg.loss.token_mean
        same = {"algorithm": "grpo", "opsd": base.opsd, "loss": base.loss}
        assert cfg.model_copy(update=same) == base
    kinds = [type(algorithm(taught(**{"opsd": cfg.opsd.model_dump()})).loss) for cfg in found.values()]
    assert kinds == [DivergenceLoss, DivergenceLoss, SampledTokenLoss]


def test_the_tiny_run_takes_another_preset() -> None:
    assert load_config(CONFIGS / "opsd-tiny-1n0g.yaml").opsd.beta == 0.5
    other = load_config(CONFIGS / "opsd-tiny-1n0g.yaml", ["opsd=opsd-v3", "opsd.entry_clip=0.2"]).opsd
    assert (other.beta, other.entry_clip, other.prompt) == (
        0.0,
        0.2,
        load_config(CONFIGS / "opsd-tiny-1n0g.yaml").opsd.prompt,
    )


def test_the_plan_says_who_teaches_what() -> None:
    tiny = CONFIGS / "opsd-tiny-1n0g.yaml"
    lines = "\n".join(plan_command(load_config(tiny, ["opsd=opsd-v3"]), "train"))
    told = "the initial policy, told a correct rollout of the same group"
    assert f"teacher: {told}; divergence of beta 0, each entry at most 0.05 nats" in lines
    sampled = plan_command(
        load_config(tiny, ["opsd=opsd-sampled", "opsd.privileged=solution", "opsd.teacher=live"]), "train"
    )
    assert "teacher: the present policy, told the data's solution; the sampled token alone" in sampled


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"opsd__prompt": "{question}"}, "opsd: prompt has no {reference}"),
        ({"opsd__teacher": "live", "opsd__teacher_path": "x"}, "teacher_path names another model"),
        ({"loss__kl_coef": 0.1}, "opsd has no penalty on the KL"),
        ({"opsd__privileged": "solution", "task__name": "mathematics"}, "names no field of solutions"),
        ({"opsd__betta": 1}, "did you mean 'opsd.beta'"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        taught(**changes)


def test_solutions_are_read_from_the_data(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    rows = [
        {"problem": "1+1?", "answer": "2", "worked": "One and one are 2."},
        {"problem": "1+2?", "answer": "3", "worked": None},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = read_dataset(DatasetConfig(path=file, solution="worked"), "train", "task.mathematics.train")
    assert [e.solution for e in loaded.rows] == ["One and one are 2.", ""]
    assert [e.solution for e in read_dataset(DatasetConfig(path=file), "train", "x").rows] == ["", ""]
    with pytest.raises(ValueError, match=r"train\.solution: no row .* has a field 'work'; .* did you mean 'worked'"):
        read_dataset(DatasetConfig(path=file, solution="work"), "train", "task.mathematics.train")
    cfg = {"algorithm": "opsd", "opsd": {"privileged": "solution"}}
    data = {"name": "mathematics", "mathematics": {"train": {"path": str(file), "solution": "worked"}}}
    assert validate({**cfg, "task": data}).opsd.privileged == "solution"


def test_the_generated_task_has_its_oracles_solutions() -> None:
    task = ArithmeticTask(settings().task.arithmetic, 0)
    for query in task.train_queries()[:20]:
        assert asyncio.run(task.grade(query, query.solution)).reward == 1.0


MODEL = Path(__file__).parents[3] / "assets" / "tiny-coldstart"


def altered(folder: Path, file: str, change: Any) -> Path:
    """A copy of the tiny model with one JSON file changed."""
    shutil.copytree(MODEL, folder)
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))
    return folder


def test_a_teacher_of_another_kind_is_a_sentence_before_anything_starts(tmp_path: Path) -> None:
    require_same_architecture(MODEL, MODEL.parent / "tiny-base", "opsd.teacher_path")
    layers = altered(tmp_path / "layers", "config.json", lambda c: c.update(num_hidden_layers=2))
    with pytest.raises(ValueError, match=r"another architecture than .*: shape is .*layers=2"):
        require_same_architecture(MODEL, layers, "opsd.teacher_path")
    rope = altered(tmp_path / "rope", "config.json", lambda c: c.update(rms_norm_eps=0.1))
    with pytest.raises(ValueError, match=r"norm_eps is 0\.1"):
        require_same_architecture(MODEL, rope, "opsd.teacher_path")
    vocabulary = altered(tmp_path / "words", "tokenizer.json", lambda t: t["model"]["merges"].pop())
    with pytest.raises(ValueError, match=r"the tokenizer of .*words is not that of"):
        require_same_architecture(MODEL, vocabulary, "opsd.teacher_path")
    with pytest.raises(ValueError, match="is not a model directory"):
        require_same_architecture(MODEL, tmp_path, "opsd.teacher_path")


# ---- NeMo-RL -----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_RL_SRC", raising=False)


SAMPLED = ("tapo.algorithm=opsd", "+tapo.opsd.divergence=sampled")


@pytest.mark.usefixtures("without_source")
def test_the_sampled_token_runs_on_nemo_rl_with_its_reference_as_the_teacher(tmp_path: Path) -> None:
    run = nemo_config.load_cluster_run(cluster_file(tmp_path), SAMPLED)
    assert run.cfg.opsd.divergence == "sampled"
    assert run.setup.reference  # a frozen copy is kept, and counted
    assert run.setup.update_rows == run.setup.originals == 256


@pytest.mark.usefixtures("without_source")
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tapo.algorithm=opsd"], "tapo.opsd.divergence = jsd is not supported: it needs the teacher's logits"),
        ([*SAMPLED, "+tapo.opsd.teacher=live"], "Set tapo.opsd.teacher to frozen"),
        ([*SAMPLED, "+tapo.opsd.teacher_path=x"], "leave tapo.opsd.teacher_path out"),
        ([*SAMPLED, "+tapo.opsd.betta=1"], "did you mean 'tapo.opsd.beta'"),
        ([*SAMPLED, "loss_fn.reference_policy_kl_penalty=0.1"], "opsd has no penalty .*reference_policy_kl_penalty"),
        ([*SAMPLED, "+loss_fn.use_importance_sampling_correction=true"], "no importance ratio"),
        ([*SAMPLED, "+tapo.opsd.privileged=solution"], "tapo.opsd.privileged = solution, but"),
        (["+tapo.ift_weight=0.1"], "tapo.ift_weight = 0.1 is not supported"),
        (["+tapo.prefix=prefilled", "policy.generation.vllm_cfg.async_engine=false"], "merges the stop strings"),
        (["+tapo.prefix=prefilled", "+policy.generation.vllm_cfg.skip_tokenizer_init=true"], "the engine's tokenizer"),
    ],
)
def test_what_nemo_rl_cannot_do_is_a_sentence(tmp_path: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        nemo_config.load_cluster_run(cluster_file(tmp_path), overrides)
