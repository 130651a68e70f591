"""Every ablation switch changes what it names and nothing else: the batches of two configurations, compared.

The same scripted rollouts and synthesis answers are turned into rows under the paper's settings and under one change.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from nemo_tapo.algorithms.reflection import count_tokens_before_last_step, count_turn_tokens
from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.batch import collate
from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.datasets.query_order import QueryOrder, add_prompts
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.interfaces import Algorithm
from nemo_tapo.losses.likelihood import LikelihoodLoss
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, ScriptedRuntime, arithmetic_script
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.types import Batch, Experience, Kind, Row

SYNTHETIC_TOKENS, LONGEST = 800, 4000
TOKENIZER = CharacterTokenizer()


def configured(algorithm: str = "tapo", **tapo: Any) -> RunConfig:
    return validate(
        {
            "algorithm": algorithm,
            "rollout": {"queries_per_step": 24, "max_tokens": 300},
            "tapo": {"max_tokens": SYNTHETIC_TOKENS, "n_neg": 2, **tapo},
            "model": {"max_length": LONGEST},
        }
    )


def made(cfg: RunConfig) -> tuple[Algorithm, Experience, list[Row], Batch]:
    """The algorithm, its first step's experience, rows and batch."""
    runtime = ScriptedRuntime(arithmetic_script)
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    queries, _ = add_prompts(task.train_queries()[:60], runtime.tokenizer, 1000)
    algorithm = make_algorithm(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    order = QueryOrder(queries, cfg.rollout.queries_per_step, cfg.seed)
    experience = asyncio.run(algorithm.collect(0, order.queries(0)))
    rows = algorithm.make_rows(experience)
    return algorithm, experience, rows, collate(rows, 0, algorithm.term_weights)


@pytest.fixture(scope="module")
def paper() -> tuple[Algorithm, Experience, list[Row], Batch]:
    found = made(configured())
    constructed = [row for row in found[2] if row.kind is Kind.CONSTRUCTED]
    groups: dict[str, set[float]] = {}
    for row in constructed:
        groups.setdefault(row.group, set()).add(row.reward)
    assert any(len(rewards) == 2 for rewards in groups.values()), "a mixed group"
    assert any(rewards == {1.0} for rewards in groups.values()), "a uniform group"
    return found


def differing(a: Batch, b: Batch) -> set[str]:
    """The fields in which two batches differ."""
    one, other = a.as_dict(), b.as_dict()
    return {
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    }


def test_lambda_scales_the_coefficients_of_constructed_rows(paper: Any) -> None:
    algorithm, _, rows, batch = made(configured(**{"lambda": 0.25}))
    assert rows == paper[2]
    assert algorithm.loss == paper[0].loss
    assert differing(batch, paper[3]) == {"loss_coef"}
    torch.testing.assert_close(batch.loss_coef, torch.where(batch.constructed, 0.25, 1.0) * paper[3].loss_coef)


def test_without_dae_groups_and_advantages_change(paper: Any) -> None:
    algorithm, experience, rows, batch = made(configured(decoupled=False))
    assert [replace(r, group="", advantage=0.0) for r in rows] == [
        replace(r, group="", advantage=0.0) for r in paper[2]
    ]
    assert {row.group for row in rows} == {group.query.uid for group in experience.groups}
    assert algorithm.loss == paper[0].loss
    assert differing(batch, paper[3]) == {"advantages"}


def test_a_group_that_teaches_is_not_counted_as_uniform(paper: Any) -> None:
    """Under Eq. 5 equal rewards teach nothing; in a joint group, or as rewards themselves, they do."""
    algorithm, experience, rows, _ = paper
    uniform = algorithm.compute_metrics(experience, rows)["tapo/uniform_groups"]
    assert uniform > 0
    joint, experience, rows, _ = made(configured(decoupled=False))
    assert joint.compute_metrics(experience, rows)["tapo/uniform_groups"] < uniform
    likelihood, experience, rows, _ = made(configured("reflective_sft"))
    assert likelihood.compute_metrics(experience, rows)["tapo/uniform_groups"] == 0


def test_without_negatives_constructed_rows_of_reward_0_are_gone(paper: Any) -> None:
    algorithm, _, rows, _ = made(configured(negatives=False))
    kept = [r for r in paper[2] if r.kind is Kind.ORIGINAL or r.reward > 0]
    assert 0 < len(kept) < len(paper[2])
    assert [replace(r, advantage=0.0) for r in rows] == [replace(r, advantage=0.0) for r in kept]
    originals = [r for r in rows if r.kind is Kind.ORIGINAL]
    assert originals == [r for r in paper[2] if r.kind is Kind.ORIGINAL], "the rollouts' own advantages stay"
    assert algorithm.loss == paper[0].loss


def test_without_ots_the_loss_alone_changes(paper: Any) -> None:
    algorithm, _, rows, batch = made(configured(suppression=False))
    assert rows == paper[2]
    assert not differing(batch, paper[3])
    assert isinstance(algorithm.loss, PolicyLoss)
    assert replace(algorithm.loss, suppression=True) == paper[0].loss


def test_uniform_group_changes_the_advantages_of_uniform_groups(paper: Any) -> None:
    _, _, rows, batch = made(configured(uniform_group="reward"))
    assert differing(batch, paper[3]) == {"advantages"}
    rewards: dict[str, list[float]] = {}
    for row in rows:
        rewards.setdefault(row.group, []).append(row.reward)
    changed = [(a, b) for a, b in zip(rows, paper[2], strict=True) if a != b]
    assert changed
    for now, before in changed:
        assert now.kind is Kind.CONSTRUCTED
        assert set(rewards[now.group]) == {1.0}
        assert (now.advantage, before.advantage) == (1.0, 0.0)


def test_with_originals_the_baseline_of_constructed_rows_changes(paper: Any) -> None:
    _, experience, rows, batch = made(configured(reflection_baseline="with_originals"))
    assert differing(batch, paper[3]) == {"advantages"}
    before = {row.uid: row.advantage for row in paper[2]}
    assert {r.kind for r in rows if r.advantage != before[r.uid]} == {Kind.CONSTRUCTED}
    group = next(g for g in experience.groups if any(r.group == f"{g.query.uid}_reflected" for r in rows))
    mine = [r for r in rows if r.group == f"{group.query.uid}_reflected"]
    rewards = [r.reward for r in group.rollouts] + [r.reward for r in mine]
    mean = sum(rewards) / len(rewards)
    deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    assert mine[0].advantage == pytest.approx((mine[0].reward - mean) / (deviation + 1e-6), rel=1e-9)


@pytest.mark.parametrize("part", ["none", "error_step_only"])
def test_prefix_loss_changes_the_mask_of_the_kept_prefix(paper: Any, part: str) -> None:
    algorithm, experience, rows, batch = made(configured(prefix_loss=part))
    assert algorithm.loss == paper[0].loss
    assert differing(batch, paper[3]) == {"token_mask"}, "the other tokens keep their weight"
    constructions = {c.pair.uid: c for c in experience.constructions}
    several_lines = 0
    for row, mask, full in zip(rows, batch.token_mask, paper[3].token_mask, strict=True):
        begin, width = len(row.prompt_ids), len(row.response_ids)
        if row.kind is Kind.ORIGINAL:
            assert torch.equal(mask, full)
            continue
        kept = constructions[row.uid]
        silent = int((full - mask).sum())
        assert mask[begin : begin + silent].sum() == 0
        assert mask[begin + silent : begin + width].sum() == width - silent
        if part == "none":
            assert silent == kept.kept_tokens
        else:
            before, rest = TOKENIZER.decode(row.response_ids[:silent]), row.response_ids[silent : kept.kept_tokens]
            assert before == "" or before.endswith("\n")
            assert "\n" not in TOKENIZER.decode(rest).rstrip("\n"), "one line, the one with the error, is left"
            several_lines += before != ""
    assert several_lines or part == "none"


def test_turn_only_leaves_loss_on_the_first_step_after_the_prefix(paper: Any) -> None:
    algorithm, experience, rows, batch = made(configured(prefix_loss="turn_only"))
    assert algorithm.loss == paper[0].loss
    assert differing(batch, paper[3]) == {"token_mask"}
    constructions = {c.pair.uid: c for c in experience.constructions}
    turns = []
    for row, mask, full in zip(rows, batch.token_mask, paper[3].token_mask, strict=True):
        if row.kind is Kind.ORIGINAL:
            assert torch.equal(mask, full)
            continue
        made_of = constructions[row.uid]
        trained = mask.nonzero()[:, 0].tolist()
        begin = len(row.prompt_ids) + made_of.kept_tokens
        assert trained == list(range(begin, begin + row.loss_tokens))
        turns.append(TOKENIZER.decode(row.response_ids[made_of.kept_tokens :][: row.loss_tokens]))
    assert turns
    assert all("\n" not in turn.strip("\n") for turn in turns), "one line"
    assert sum("Wait" in turn for turn in turns) > 0.6 * len(turns)


def test_the_turn_by_hand() -> None:
    added = "Wait, 47+38=85\n85-19=66\n"
    for text, tokens in ((added, 14), ("\n" + added, 15), ("", 1), ("Wait, 47+38=85", 14)):
        assert count_turn_tokens(text, (*TOKENIZER.encode(text), TOKENIZER.eos_id), TOKENIZER) == tokens, text


def test_the_last_step_of_a_kept_prefix_by_hand() -> None:
    ids = TOKENIZER.encode("3+4=7\n7+5=11\n")
    for kept, silent in (("3+4=7\n7+5=11\n", 6), ("3+4=7\n7+5", 6), ("3+4=7\n", 0), ("3+", 0), ("", 0), ("\n\n", 0)):
        assert count_tokens_before_last_step(kept, ids[: len(kept)], TOKENIZER) == silent, kept


def test_ift_weight_adds_rows_and_leaves_the_others_as_they_are(paper: Any) -> None:
    algorithm, experience, rows, batch = made(configured(ift_weight=0.5))
    count = len(paper[2])
    added = rows[count:]
    assert rows[:count] == paper[2]
    assert algorithm.loss == paper[0].loss
    right = [c for c in experience.constructions if c.dropped is None and c.reward > 0]
    assert len(added) == len(right) > 0
    for row, c in zip(added, right, strict=True):
        assert row.kind is Kind.EXAMPLE
        assert TOKENIZER.decode(row.response_ids) == c.raw
        assert "Wrong answer:" in TOKENIZER.decode(row.prompt_ids)
        assert row.generation_logprobs is None
    torch.testing.assert_close(batch.loss_coef[:count], paper[3].loss_coef)
    shares = [c * len(r.response_ids) for c, r in zip(batch.loss_coef[count:].tolist(), added, strict=True)]
    originals = sum(row.kind is Kind.ORIGINAL for row in rows)
    assert shares == pytest.approx([0.5 / originals] * len(added))  # each weighs half a rollout
    assert batch.supervised is not None
    assert batch.supervised.tolist() == [False] * count + [True] * len(added)


def test_the_ift_term_is_likelihood(paper: Any) -> None:
    """Its gradient at ratio 1 is that of its rows' mean negative log-likelihoods, each weighing half a rollout."""
    _, _, rows, batch = made(configured(ift_weight=0.5))
    torch.manual_seed(0)
    logits = torch.randn(*batch.input_ids.shape, 128, dtype=torch.float64)

    def gradient(weight: float, part: Batch) -> torch.Tensor:
        x = logits.clone().requires_grad_()
        loss = PolicyLoss()(x, replace(part, loss_coef=part.loss_coef * weight), VocabShard(0, 128)).loss
        loss.backward()
        assert x.grad is not None
        return x.grad

    with_term = gradient(1.0, batch)
    assert batch.supervised is not None
    without_term = gradient(1.0, replace(batch, sample_mask=(~batch.supervised).float()))
    x = logits.clone().requires_grad_()
    examples = [i for i, row in enumerate(rows) if row.kind is Kind.EXAMPLE]
    logp = torch.log_softmax(x, -1)
    terms = []
    for i in examples:
        begin, end = len(rows[i].prompt_ids), rows[i].length
        terms.append(logp[i, torch.arange(begin - 1, end - 1), batch.input_ids[i, begin:end]].mean())
    originals = sum(row.kind is Kind.ORIGINAL for row in rows)
    (-0.5 * torch.stack(terms).sum() / originals).backward()
    assert x.grad is not None
    # the coefficients are fp32
    torch.testing.assert_close(with_term - without_term, x.grad, rtol=1e-6, atol=1e-12)


def test_full_reconstruction_keeps_nothing_and_leaves_rollouts_alone(paper: Any) -> None:
    _, experience, rows, _ = made(configured(full_reconstruction=True))
    assert [r for r in rows if r.kind is Kind.ORIGINAL] == [r for r in paper[2] if r.kind is Kind.ORIGINAL]
    assert [c.pair for c in experience.constructions] == [c.pair for c in paper[1].constructions]
    assert {c.kept_tokens for c in experience.constructions} == {0}


def test_reflective_sft_learns_the_right_constructions_of_the_same_rollouts(paper: Any) -> None:
    algorithm, experience, rows, _ = made(configured("reflective_sft"))
    assert experience.groups == paper[1].groups
    assert experience.constructions == paper[1].constructions
    right = [r for r in paper[2] if r.kind is Kind.CONSTRUCTED and r.reward > 0]
    assert [replace(r, advantage=0.0) for r in rows] == [replace(r, advantage=0.0) for r in right]
    assert algorithm.loss == LikelihoodLoss()


def test_a_step_without_any_row_is_an_update_without_gradient() -> None:
    batch = collate([], pad_id=7)
    logits = torch.randn(*batch.input_ids.shape, 128, requires_grad=True)
    output = LikelihoodLoss()(logits, batch, VocabShard(0, 128))
    output.loss.backward()
    assert float(output.loss.detach()) == 0.0 == reduce_parts([output.parts])["loss"]
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("setting", [(2, 2, 2), (2, 2, 4), (2, 4, 4), (1, 5, 3)])
def test_table_5_decides_which_pairs_there_are(paper: Any, setting: tuple[int, int, int]) -> None:
    n_pos, n_neg, m_max = setting
    _, experience, rows, _ = made(configured(n_pos=n_pos, n_neg=n_neg, m_max=m_max))
    assert experience.groups == paper[1].groups
    pairs: dict[str, int] = {}
    for c in experience.constructions:
        uid = c.pair.wrong.query.uid
        pairs[uid] = pairs.get(uid, 0) + 1
    wrong = {g.query.uid: sum(r.reward == 0 for r in g.rollouts) for g in experience.groups}
    expected = {uid: min(m_max, n) for uid, n in wrong.items() if n >= n_neg and 8 - n >= n_pos}
    assert pairs == expected
    assert [r for r in rows if r.kind is Kind.ORIGINAL] == [r for r in paper[2] if r.kind is Kind.ORIGINAL]
