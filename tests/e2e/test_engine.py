"""The vLLM engine in its Ray actor, through the driver's side of it: real processes, no Megatron."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.local import ray_cluster
from nemo_tapo.runtime.local.engine import EngineInfo
from nemo_tapo.runtime.local.generator import LocalGenerator
from nemo_tapo.runtime.local.runtime import start_engine
from nemo_tapo.stages.pretrain import write_random_model
from nemo_tapo.types import Completion, Request
from nemo_tapo.utils.errors import RuntimeFailure

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
T = TypeVar("T")
MAX_LENGTH, PROMPT_TOKENS, VOCABULARY = 384, 72, 512  # a prompt fills two KV-cache blocks


@dataclass(frozen=True)
class Bench:
    cfg: RunConfig
    generator: LocalGenerator
    tokenizer: HFTokenizer


def model_directory(folder: Path, seed: int) -> RunConfig:
    """A random model, its embeddings doubled: a distribution that is neither flat nor one token."""
    cfg = RunConfig.model_validate({"seed": seed, "model": {"path": folder, "max_length": MAX_LENGTH}})
    write_random_model(cfg, folder)
    model = Qwen3ForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    model.save_pretrained(folder)
    return cfg


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    cfg = model_directory(tmp_path_factory.mktemp("model"), seed=0)
    before = set(psutil.Process().children(recursive=True))
    ray = ray_cluster.start()
    try:
        generator = asyncio.run(start_engine(cfg, print))
        yield Bench(cfg, generator, HFTokenizer(cfg.model.path))
    finally:
        ray_cluster.stop(ray)
    assert set(psutil.Process().children(recursive=True)) <= before, "processes were left behind"
    assert not ray.folder.exists()


def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(work, seconds)

    return asyncio.run(limited())


def requests(count: int = 64, max_tokens: int = 48, **settings: Any) -> list[Request]:
    """`count` requests over eight prompts, each with its own seed."""
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS)) for _ in range(8)]
    return [Request(str(i), prompts[i % 8], 1000 + i, max_tokens, **settings) for i in range(count)]


async def at_once(generator: LocalGenerator, asked: Sequence[Request]) -> list[Completion]:
    return list(await asyncio.gather(*(generator.generate(r) for r in asked)))


def tokens(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [c.token_ids for c in completions]


def reference_logprobs(model: Qwen3ForCausalLM, request: Request, completion: Completion) -> Tensor:
    """[T] nats of the completion's tokens by Hugging Face."""
    ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        logp = model(ids).logits[0, len(request.prompt_ids) - 1 : -1].log_softmax(-1)
    return logp.gather(-1, ids[0, len(request.prompt_ids) :, None])[:, 0]


def test_a_seed_decides_the_tokens(bench: Bench) -> None:
    asked = requests(16)
    first = within(60, at_once(bench.generator, asked))
    again = within(60, at_once(bench.generator, asked))
    other = within(60, at_once(bench.generator, [replace(r, seed=r.seed + 1) for r in asked]))
    assert tokens(first) == tokens(again)
    assert len(set(tokens(first))) == 16
    assert not set(tokens(first)) & set(tokens(other))


def test_a_text_ends_the_request_that_names_it_and_no_other(bench: Bench) -> None:
    asked = requests(8)
    whole = within(60, at_once(bench.generator, asked))
    stops = [c.text[10:13] for c in whole]
    ended = [replace(r, stop=stop) if i % 2 else r for i, (r, stop) in enumerate(zip(asked, stops, strict=True))]
    for i, (first, now, stop) in enumerate(zip(whole, within(60, at_once(bench.generator, ended)), stops, strict=True)):
        if i % 2:
            assert now.token_ids == first.token_ids[: len(now.token_ids)]
            assert stop in now.text and stop not in bench.tokenizer.decode(now.token_ids[:-1])
            assert not now.truncated
        else:
            assert now == first


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_p": 0.9}], ids=["plain", "top_p"])
def test_the_company_in_the_batch_changes_no_token(bench: Bench, settings: dict[str, float]) -> None:
    asked = requests(**settings)

    async def by_sixteen() -> list[Completion]:
        return [c for i in range(0, 64, 16) for c in await at_once(bench.generator, asked[i : i + 16])]

    async def scattered() -> list[Completion]:
        """In another order, most of them while others run."""
        rng = random.Random(1)

        async def later(request: Request) -> Completion:
            await asyncio.sleep(rng.random() * 0.5)
            return await bench.generator.generate(request)

        return list(await asyncio.gather(*(later(r) for r in asked)))

    together = tokens(within(60, at_once(bench.generator, asked)))
    assert together == tokens(within(60, by_sixteen()))
    assert together == tokens(within(60, scattered()))
    assert together == tokens(within(60, at_once(bench.generator, [replace(r, logprobs=True) for r in asked])))


def test_a_full_batch_of_long_prompts_is_served(bench: Bench) -> None:
    """More prompt tokens than one step takes: the rest has to wait, not to be cut (see engine.py)."""
    prompt = tuple(range(3, 303))
    asked = [Request(str(i), (5 + i, *prompt), seed=i, max_tokens=4) for i in range(48)]
    completions = within(60, at_once(bench.generator, asked))
    assert tokens(completions[:4]) == tokens(within(60, at_once(bench.generator, asked[:4])))


def test_a_request_joins_those_that_run(bench: Bench) -> None:
    finished: list[str] = []

    async def timed(request: Request) -> None:
        await bench.generator.generate(request)
        finished.append(request.uid)

    async def run() -> None:
        long = [asyncio.create_task(timed(replace(r, max_tokens=300))) for r in requests(32)]
        await asyncio.sleep(0.3)
        await timed(Request("late", (5, 6, 7), seed=1, max_tokens=2))
        await asyncio.gather(*long)

    within(60, run())
    assert len(finished) == 33
    assert finished.index("late") < 32, "the late request waited until all others were done"


def test_it_ends_with_eos_or_is_truncated(bench: Bench) -> None:
    completions = within(60, at_once(bench.generator, requests(max_tokens=200)))
    eos = bench.tokenizer.eos_id
    ended = [c for c in completions if not c.truncated]
    assert 0 < len(ended) < len(completions)
    assert all(c.token_ids.index(eos) == len(c.token_ids) - 1 for c in ended)
    assert all(len(c.token_ids) == 200 and eos not in c.token_ids[:-1] for c in completions if c.truncated)
    assert all(c.text == bench.tokenizer.decode(c.token_ids) for c in completions)


def test_samples_follow_the_model(bench: Bench) -> None:
    """First tokens of 4096 seeds against the model's distribution, by chi-square."""
    prompt = requests(1)[0].prompt_ids
    count = 4096
    asked = [Request(str(i), prompt, seed=i, max_tokens=1) for i in range(count)]
    drawn = torch.tensor([c.token_ids[0] for c in within(120, at_once(bench.generator, asked))])
    model = Qwen3ForCausalLM.from_pretrained(bench.cfg.model.path)
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].softmax(-1) * count
    observed = torch.bincount(drawn, minlength=VOCABULARY).float()
    often = expected > 4
    chi_square = ((observed - expected) ** 2 / expected)[often].sum() / often.sum()
    assert often.sum() > 100
    assert 0.7 < chi_square < 1.3, f"chi-square per degree of freedom {chi_square:.2f}"


def test_what_does_not_fit_is_refused_and_the_rest_served(bench: Bench) -> None:
    good = requests(2)
    long = Request("long", (5,) * 340, seed=1, max_tokens=48)
    foreign = Request("foreign", (VOCABULARY,), seed=1, max_tokens=4)
    empty = Request("empty", (), seed=1, max_tokens=4)

    async def run() -> list[Completion | BaseException]:
        every = [bench.generator.generate(r) for r in (*good, long, foreign, empty)]
        return list(await asyncio.gather(*every, return_exceptions=True))

    *served, too_long, outside, nothing = within(60, run())
    assert all(isinstance(c, Completion) for c in served)
    assert isinstance(too_long, ValueError)
    assert str(too_long) == (
        "request 'long': 340 prompt tokens and max_tokens 48 exceed the engine's 384 tokens; "
        "raise model.max_length or shorten the request."
    )
    assert isinstance(outside, ValueError)
    assert "vocabulary of 512" in str(outside)
    assert isinstance(nothing, ValueError)


def test_new_weights_are_the_ones_that_sample(bench: Bench, tmp_path: Path) -> None:
    """Also behind prompts that the prefix cache knows from the old weights."""
    new = Qwen3ForCausalLM.from_pretrained(model_directory(tmp_path, seed=1).model.path)
    old = Qwen3ForCausalLM.from_pretrained(bench.cfg.model.path)
    asked = requests(16, logprobs=True)

    def check(model: Qwen3ForCausalLM) -> list[tuple[int, ...]]:
        completions = within(60, at_once(bench.generator, asked))
        for request, completion in zip(asked, completions, strict=True):
            assert completion.logprobs is not None
            expected = reference_logprobs(model, request, completion)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)
        return tokens(completions)

    def give(model: Qwen3ForCausalLM) -> None:
        weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        within(60, bench.generator.update_weights(weights))

    before = check(old)
    give(new)
    assert check(new) != before
    give(old)
    assert check(old) == before


def test_logprobs_are_of_the_sampling_distribution(bench: Bench) -> None:
    """After the temperature: sharper than the model's own."""
    request = requests(1, logprobs=True, temperature=0.5)[0]
    (completion,) = within(60, at_once(bench.generator, [request]))
    model = Qwen3ForCausalLM.from_pretrained(bench.cfg.model.path)
    ids = torch.tensor([[*request.prompt_ids, completion.token_ids[0]]])
    with torch.no_grad():
        expected = (model(ids).logits[0, -2] / 0.5).log_softmax(-1)[completion.token_ids[0]]
    assert completion.logprobs is not None
    assert completion.logprobs[0] == pytest.approx(float(expected), abs=1e-4)


def test_weights_of_another_model_are_refused(bench: Bench) -> None:
    weights = dict(Qwen3ForCausalLM.from_pretrained(bench.cfg.model.path).state_dict())
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"1 names or shapes differ, .*layers\.1\.mlp\.up_proj"):
        within(60, bench.generator.update_weights(weights))
    assert within(60, at_once(bench.generator, requests(1)))


def test_weights_do_not_change_while_requests_run(bench: Bench) -> None:
    import ray

    async def run() -> None:
        running = asyncio.create_task(bench.generator.generate(requests(1)[0]))
        await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="1 requests are in flight"):
            await bench.generator.update_weights({})
        await running

    within(60, run())
    engine = bench.generator._engine  # its own guard, whoever calls it
    long = replace(requests(1)[0], max_tokens=300)
    assert ray.get(engine.exchange.remote([(-1, long)])) == []
    with pytest.raises(AssertionError, match="in flight"):
        ray.get(engine.update_weights.remote({}))
    while not ray.get(engine.exchange.remote([])):
        pass


def test_a_second_engine_gives_the_same_tokens_and_its_loss_is_told(bench: Bench) -> None:
    """Another process, same seeds, same tokens. Then it hangs, then it is killed."""
    second = asyncio.run(start_engine(bench.cfg, print))
    asked = requests()
    assert tokens(within(60, at_once(second, asked))) == tokens(within(60, at_once(bench.generator, asked)))

    impatient = LocalGenerator(second._engine, EngineInfo(second.pid, MAX_LENGTH, VOCABULARY, 0.0), call_timeout=2)
    os.kill(second.pid, signal.SIGSTOP)
    with pytest.raises(RuntimeFailure, match=rf"vLLM engine \(process {second.pid}\) did not answer within 2"):
        within(60, impatient.generate(replace(asked[0], max_tokens=1)))
    os.kill(second.pid, signal.SIGCONT)

    async def killed() -> list[Completion | BaseException]:
        every = [asyncio.create_task(second.generate(replace(r, max_tokens=300))) for r in asked]
        await asyncio.sleep(0.2)
        os.kill(second.pid, signal.SIGKILL)
        return list(await asyncio.gather(*every, return_exceptions=True))

    started = time.monotonic()
    lost = [str(r) for r in within(60, killed()) if isinstance(r, RuntimeFailure)]  # a few may have been faster
    assert len(lost) > 32
    assert all(f"the vLLM engine (process {second.pid}) died" in message for message in lost)
    assert time.monotonic() - started < 60
    with pytest.raises(RuntimeFailure, match="died"):
        within(5, second.generate(asked[0]))
    assert within(60, at_once(bench.generator, asked[:1])), "the first engine is not concerned"
