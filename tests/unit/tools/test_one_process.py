"""tools/one_process.py: its sampling against the model's own log-probabilities, and two steps of the loop."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_tapo.batch import collate
from nemo_tapo.config.run_config import validate
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.losses.likelihood import LikelihoodLoss
from nemo_tapo.stages.pretrain import write_random_model
from nemo_tapo.types import Completion, Kind, Request, Row
from tests.helpers.imports import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import one_process

TINY = {"pretrain": {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 16}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_model(validate({"task": {"name": "countdown"}, **TINY}), folder)
    return folder


def requests(runtime: one_process.OneProcessRuntime) -> list[Request]:
    prompts = [runtime.tokenizer.chat(text) for text in ("Numbers: 3 5 8\nTarget: 16", "Copy", "Numbers: 2")]
    return [Request(str(i), p, 7 + i, 12 - i, temperature=0.7, logprobs=True) for i, p in enumerate(prompts)]


def ask(runtime: one_process.OneProcessRuntime, asked: list[Request]) -> list[Completion]:
    async def all_of_them() -> list[Completion]:
        return list(await asyncio.gather(*(runtime.generator.generate(request) for request in asked)))

    return asyncio.run(all_of_them())


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(model: Path) -> None:
    runtime = one_process.OneProcessRuntime(validate({"model": {"path": str(model)}}))
    asked = requests(runtime)
    together = ask(runtime, asked)
    alone = [ask(runtime, [request])[0] for request in asked]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert all(len(c.token_ids) <= request.max_tokens for c, request in zip(together, asked, strict=True))


def test_reported_logprobs_are_those_of_the_model(model: Path) -> None:
    """Padding on the left, the cache and the rows that leave a batch change nothing."""
    runtime = one_process.OneProcessRuntime(validate({"model": {"path": str(model)}}))
    for request, answer in zip(requests(runtime), ask(runtime, requests(runtime)), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *answer.token_ids]])
        with torch.no_grad():
            logp = (runtime.actor.model(ids)[0, :-1] / request.temperature).log_softmax(-1)
        begin = len(request.prompt_ids)
        want = logp[begin - 1 :].gather(1, ids[0, begin:, None])[:, 0]
        assert answer.logprobs is not None
        torch.testing.assert_close(torch.tensor(answer.logprobs), want, atol=1e-4, rtol=0)


def test_top_p_leaves_the_tail_out() -> None:
    probs = torch.tensor([[0.1, 0.6, 0.3]] * 3)
    assert one_process._draw(probs, [0.5, 1.0, 1.0], [0.99, 0.99, 0.5]).tolist() == [1, 2, 1]
    assert one_process._draw(probs, [0.9, 0.9, 0.61], [0.99, 0.6, 0.99]).tolist() == [2, 1, 2]


def test_a_text_ends_a_request(model: Path) -> None:
    """The same request with the text of its third token as `stop` ends there, and is not called cut off."""
    runtime = one_process.OneProcessRuntime(validate({"model": {"path": str(model)}}))
    request = requests(runtime)[0]
    ids = ask(runtime, [request])[0].token_ids
    stop = runtime.tokenizer.decode(ids[2:3])
    assert stop and stop not in runtime.tokenizer.decode(ids[:2])
    ended = ask(runtime, [replace(request, stop=stop)])[0]
    assert ended.token_ids == ids[:3] and not ended.truncated and ended.text.endswith(stop)


def test_micro_batches_give_the_same_update(model: Path) -> None:
    rows = [Row(str(i), "q", Kind.EXAMPLE, (1, 2), tuple(range(3, 6 + i))) for i in range(5)]
    results = []
    for tokens in (1000, 8):
        actor = one_process.OneProcessActor(model, tokens)
        asyncio.run(actor.configure(OptimizerConfig(name="muon", lr=1e-3, warmup_steps=0, weight_decay=0.1), 2))
        results.append((asyncio.run(actor.train(collate(rows, 0), LikelihoodLoss())), actor))
    (whole, a), (parts, b) = results
    assert whole.loss == pytest.approx(parts.loss) and whole.grad_norm == pytest.approx(parts.grad_norm, rel=1e-4)
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


def test_muon_is_torchs_but_for_the_precision() -> None:
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 6), (6, 4))]
    torchs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    optimizers = [
        one_process.Muon(mine, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(torchs, lr=0.02, weight_decay=0.1),
    ]
    for _ in range(3):
        for p, q in zip(mine, torchs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(mine, torchs, strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=0)  # a step moves an entry by 0.02; bfloat16 has 8 bits


def test_two_steps_of_the_loop(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_process.registry, "start_runtime", one_process.start_runtime)
    settings = [
        "train", f"model.path={model}", "model.max_length=200", f"output={tmp_path / 'run'}", "steps=2",
        "rollout.queries_per_step=2", "rollout.samples_per_query=4", "rollout.max_tokens=12", "tapo.max_tokens=12",
        "tapo.n_neg=2", "checkpoint.min_free_gib=0", "local.threads=1",
    ]  # fmt: skip
    assert one_process.cli.main(settings) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and steps[0]["engine_gap"] < 1e-4
    assert (tmp_path / "run" / "hf" / "model.safetensors").is_file()
    assert one_process.OneProcessRuntime(validate({"model": {"path": str(tmp_path / "run" / "hf")}}))
