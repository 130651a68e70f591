"""The engine's side: sync and async engines give the same rows, one setting for all, phases in NeMo-RL's order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stubs import LIMIT, NotingPolicy, StubEngine

from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.batch import collate
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.datasets.query_order import add_prompts
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.runtime.nemo_rl.actor import BatchShape, NemoActor, PolicyAdapters, PolicyOrigin, WeightsHandle
from nemo_tapo.runtime.nemo_rl.colocation import ColocationScheduler
from nemo_tapo.runtime.nemo_rl.generator import EngineSettings, NemoGenerator
from nemo_tapo.runtime.nemo_rl.separation import SeparateScheduler
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, ScriptedGenerator, arithmetic_script
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.train import train
from nemo_tapo.types import Experience, Kind, Request, Row
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.seeding import seed_from
from nemo_tapo.utils.signals import Stop
from tests.helpers import reference

SETTINGS = EngineSettings(
    max_model_len=4000, max_new_tokens=LIMIT, temperature=1.0, top_p=1.0, asynchronous=False, pad_id=0
)

QUESTION = "47\na: +38\nb: -19"


def nemo_batch(values: Any) -> Any:
    """NeMo-RL's own mapping."""
    from nemo_tapo.runtime.nemo_rl import compat

    return compat.load("BatchedDataDict")(values)


BATCHES = [
    pytest.param(dict, id="dict"),
    pytest.param(nemo_batch, id="BatchedDataDict", marks=pytest.mark.nemo_rl),
]


def generator(
    engine: StubEngine,
    colocated: bool = True,
    batch: Callable[[Any], Any] = dict,
    kind: type[ColocationScheduler] = ColocationScheduler,
    **changes: Any,
) -> NemoGenerator:
    def refit(policy: Any, engine: Any, colocated: bool) -> None:
        engine.calls.append("refit")

    scheduler = kind(NotingPolicy(engine.calls), engine, colocated, refit)
    return NemoGenerator(engine, scheduler, replace(SETTINGS, **changes), CharacterTokenizer(), batch)


def settings(**changes: Any) -> RunConfig:
    return validate(
        {
            "rollout": {"queries_per_step": 6, "max_tokens": 300, "logprobs": "always"},
            "tapo": {"max_tokens": 800},
            "model": {"max_length": 4000},
            "steps": 2,
            "loss": {"kl_rows": 4},
            **changes,
        }
    )


async def step_of(cfg: RunConfig, with_generator: Any) -> tuple[Experience, list[Row]]:
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    tokenizer = CharacterTokenizer()
    queries, _ = add_prompts(task.train_queries()[:6], tokenizer, 1000)
    algorithm = TAPO(cfg, Tools(with_generator, tokenizer, task))
    experience = await algorithm.collect(0, queries)
    return experience, algorithm.make_rows(experience)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("pipeline", ["overlapped", "barrier"])
def test_sync_and_async_engines_give_the_rows_of_the_scripted_runtime(
    batch: Callable[[Any], Any], pipeline: str
) -> None:
    cfg = settings(pipeline=pipeline)
    sync, asynchronous = StubEngine(batch), StubEngine(batch)
    _, rows = asyncio.run(step_of(cfg, generator(sync, batch=batch)))
    _, others = asyncio.run(step_of(cfg, generator(asynchronous, batch=batch, asynchronous=True)))
    scripted = ScriptedGenerator(arithmetic_script, CharacterTokenizer(), SETTINGS.max_model_len)
    _, expected = asyncio.run(step_of(cfg, scripted))
    bare = [replace(row, generation_logprobs=None) for row in rows]
    assert bare == expected
    assert rows == others
    assert any(row.uid.endswith("_reflected/0") for row in rows)
    assert asynchronous.sizes == [1] * len(asynchronous.sizes)
    assert sync.sizes[0] == 48  # all rollouts of the step in one call
    assert len(sync.sizes) == 2 or pipeline == "overlapped"  # behind the barrier, all syntheses in another


def test_generation_logprobs_are_of_original_rows_alone_and_aligned() -> None:
    _, rows = asyncio.run(step_of(settings(), generator(StubEngine())))
    for row in rows:
        if "_reflected" in row.uid:
            assert row.generation_logprobs is None
        else:
            assert row.generation_logprobs is not None
            assert row.generation_logprobs == pytest.approx([-(i + 1) / 1000 for i in range(len(row.response_ids))])


def test_every_token_of_a_response_is_trained_on_with_or_without_an_engines_logprobs() -> None:
    """NeMo-RL masks the tokens of a message that has none: constructed rows would teach nothing."""
    _, rows = asyncio.run(step_of(settings(), generator(StubEngine())))
    assert {row.generation_logprobs is None for row in rows} == {True, False}
    batch = collate(rows, pad_id=0)
    assert batch.token_mask.sum(1).tolist() == [len(row.response_ids) for row in rows]
    assert batch.generation_mask is not None
    assert batch.generation_mask.tolist() == [row.generation_logprobs is not None for row in rows]


def test_queries_with_equal_prompts_stay_groups_of_their_own() -> None:
    """NeMo-RL groups rows by their prompt's tokens: a reflection group has its query's, and so has a query's double."""
    cfg = settings()
    task, tokenizer = ArithmeticTask(cfg.task.arithmetic, cfg.seed), CharacterTokenizer()
    (first, *_), _ = add_prompts(task.train_queries()[:1], tokenizer, 1000)
    doubles = [replace(first, uid=f"double{i}") for i in range(6)]
    algorithm = TAPO(cfg, Tools(generator(StubEngine()), tokenizer, task))
    rows = algorithm.make_rows(asyncio.run(algorithm.collect(0, doubles)))
    assert len({row.prompt_ids for row in rows}) == 1
    groups: dict[tuple[str, Kind], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.group.split("_")[0], row.kind), []).append(row)
    assert len({tuple(row.reward for row in group) for group in groups.values()}) > 3
    for group in groups.values():
        rewards = [row.reward for row in group]
        expected = rewards if len(rewards) == 1 else reference.normalised(rewards, rewards, cfg.loss.advantage_eps)
        assert [row.advantage for row in group] == pytest.approx(expected)


def test_nothing_but_ids_lengths_and_seeds_goes_to_the_engine() -> None:
    """No stop strings: NeMo-RL merges those of all rows of a call."""
    engine = StubEngine()
    asyncio.run(step_of(settings(), generator(engine)))
    assert engine.keys == {"input_ids", "input_lengths", "seed"}


def test_a_prefilled_prefix_gives_the_rows_of_the_scripted_runtime_and_alone_has_stop_strings() -> None:
    cfg, engine = settings(tapo={"max_tokens": 800, "prefix": "prefilled"}), StubEngine()
    _, rows = asyncio.run(step_of(cfg, generator(engine, asynchronous=True)))
    scripted = ScriptedGenerator(arithmetic_script, CharacterTokenizer(), SETTINGS.max_model_len)
    _, expected = asyncio.run(step_of(cfg, scripted))
    assert [replace(row, generation_logprobs=None) for row in rows] == expected
    assert any(row.uid.endswith("_reflected/0") for row in rows)
    assert "stop_strings" in engine.keys
    with pytest.raises(ValueError, match=r"vllm_cfg\.async_engine=true"):
        asyncio.run(step_of(cfg, generator(StubEngine())))


def test_a_shorter_limit_cuts_what_the_engine_gave() -> None:
    request = Request("a", CharacterTokenizer().chat(QUESTION), seed=1, max_tokens=300, logprobs=True)

    async def both() -> tuple[Any, Any]:
        here = generator(StubEngine())
        return await here.generate(request), await here.generate(replace(request, max_tokens=5))

    whole, cut = asyncio.run(both())
    assert whole.token_ids[-1] == CharacterTokenizer.eos_id and not whole.truncated
    assert cut.token_ids == whole.token_ids[:5] and cut.truncated
    assert cut.logprobs == whole.logprobs[:5]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"temperature": 0.6}, "at policy.generation's 1, 1"),
        ({"top_p": 0.9}, "top-p 0.9"),
        ({"max_tokens": LIMIT + 1}, "max_new_tokens = 900"),
        ({"prompt_ids": (5,) * 3800}, "max_model_len = 4000"),
    ],
)
def test_what_the_engine_cannot_do_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    engine = StubEngine()
    request = replace(Request("a", (5, 6), seed=1, max_tokens=300), **change)
    with pytest.raises(ValueError, match=sentence):
        asyncio.run(generator(engine).generate(request))
    assert engine.sizes == []


def test_prompts_longer_than_the_engine_holds_never_reach_it() -> None:
    engine = StubEngine()
    experience, _ = asyncio.run(step_of(settings(), generator(engine, max_model_len=900)))
    dropped = [c.dropped for c in experience.constructions]
    assert dropped.count("prompt_too_long") == len(dropped) > 0
    assert engine.longest_prompt + 300 <= 900


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_engine_that_fails_ends_everybodys_wait(asynchronous: bool) -> None:
    engine = StubEngine()

    def fail(data: Any) -> Any:
        raise OSError("no memory")

    engine._answer = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeFailure, match="no memory"):
        asyncio.run(asyncio.wait_for(step_of(settings(), generator(engine, asynchronous=asynchronous)), 20))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_engine_that_hangs_is_named_when_its_time_is_over(asynchronous: bool) -> None:
    engine, release = StubEngine(), threading.Event()

    async def silent(data: Any, greedy: bool = False) -> AsyncIterator[Any]:
        await asyncio.get_running_loop().create_future()
        yield

    engine.generate = lambda data, greedy=False: release.wait()  # type: ignore[assignment,method-assign]
    engine.generate_async = silent  # type: ignore[method-assign]
    here = generator(engine, asynchronous=asynchronous)
    here._scheduler.timeout = 0.05
    request = Request("a", CharacterTokenizer().chat(QUESTION), seed=1, max_tokens=300)
    with pytest.raises(RuntimeFailure, match=r"NeMo-RL's generation engine did not answer within 0\.05 seconds"):
        asyncio.run(here.generate(request))
    release.set()


def test_a_policy_that_hangs_is_named_with_what_it_was_doing() -> None:
    engine, release = StubEngine(), threading.Event()
    scheduler = ColocationScheduler(NotingPolicy(engine.calls), engine, True, lambda *parts: None, timeout=0.05)
    with pytest.raises(RuntimeFailure, match=r"NeMo-RL's policy \(updating\) did not answer within 0\.05 seconds"):
        asyncio.run(scheduler.training(release.wait, "updating"))
    scheduler.engine.finish_generation = release.wait
    scheduler.phase = "generating"
    with pytest.raises(RuntimeFailure, match=r"generation engine \(going to sleep\) did not answer"):
        asyncio.run(scheduler.scoring(lambda: None, "scoring"))
    release.set()


def test_a_refit_that_fails_is_the_loss_of_an_engine() -> None:
    """NeMo-RL raises a plain RuntimeError; exit code 3 tells the launcher to go on in another allocation."""

    def refit(*parts: Any) -> None:
        raise RuntimeError("Updating weights for the generation policy failed during refit.")

    engine = StubEngine()
    scheduler = ColocationScheduler(NotingPolicy(engine.calls), engine, True, refit)
    here = NemoGenerator(engine, scheduler, SETTINGS, CharacterTokenizer(), dict)
    with pytest.raises(RuntimeFailure, match=r"policy or engine \(handing weights over\) failed: .*during refit"):
        asyncio.run(here.generate(Request("a", CharacterTokenizer().chat(QUESTION), seed=1, max_tokens=300)))


def test_an_async_answer_is_read_to_its_end() -> None:
    """A caller that leaves a generator before its end cancels what runs behind it."""
    engine, ends = StubEngine(), []
    whole = engine.generate_async

    async def noting(data: Any, greedy: bool = False) -> AsyncIterator[Any]:
        try:
            async for output in whole(data, greedy):
                yield output
            ends.append("end")
        except GeneratorExit:
            ends.append("left")
            raise

    engine.generate_async = noting  # type: ignore[method-assign]
    asyncio.run(step_of(settings(), generator(engine, asynchronous=True)))
    assert len(ends) >= 48 and set(ends) == {"end"}


@pytest.mark.nemo_rl
def test_nemo_rl_cancels_no_request_that_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own VllmGeneration over a worker group that answers at once; main cancels the request of who leaves early."""
    import ray

    from nemo_tapo.runtime.nemo_rl import compat

    engine, cancelled = StubEngine(nemo_batch), []
    vllm = object.__new__(compat.load("VllmGeneration"))
    vllm.cfg = {"vllm_cfg": {"async_engine": True}}
    vllm.current_generate_dp_shard_idx, vllm.fleet_selector, vllm.fleet_monitor = 0, None, None

    async def answer(data: Any) -> Any:
        return 0, engine._answer(data)

    async def proxy(data: Any) -> AsyncIterator[Any]:
        yield answer(data)

    vllm.worker_group = SimpleNamespace(
        dp_size=1,
        workers=[None],
        get_dp_leader_worker_idx=lambda shard: 0,
        run_single_worker_single_data=lambda method_name, worker_idx, data, greedy: proxy(data),
        shutdown=lambda **options: True,
    )
    vllm.weight_synchronizer = None
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    scheduler = ColocationScheduler(NotingPolicy([]), vllm, True, lambda *parts: None)
    here = NemoGenerator(vllm, scheduler, replace(SETTINGS, asynchronous=True), CharacterTokenizer(), nemo_batch)
    requests = [Request(str(i), CharacterTokenizer().chat(QUESTION), seed=i, max_tokens=300) for i in range(4)]

    async def ask() -> list[Any]:
        return list(await asyncio.gather(*map(here.generate, requests)))

    answers = asyncio.run(ask())
    assert len(answers) == 4 and all(a.token_ids for a in answers)
    assert cancelled == []


# ---- whose turn it is ----------------------------------------------------------------------------------------------


class Noted(RuntimeDefaults):
    """The real actor, generator and phases over stand-ins that note what NeMo-RL would be told."""

    def __init__(self, colocated: bool, **changes: Any) -> None:
        self.calls: list[str] = []
        self.engine, self.tokenizer = StubEngine(calls=self.calls), CharacterTokenizer()
        self.generator = generator(self.engine, colocated, **changes)
        scheduler = self.generator._scheduler
        self.policy = scheduler.policy
        shape = BatchShape(train_rows=80, row_multiple=8, width_multiple=8, data_parallel=2, pad_id=0, temperature=1.0)
        origin = PolicyOrigin(Path("m"), checkpoint=None, has_reference=True)
        adapters = PolicyAdapters(make_loss=lambda loss: None, make_batch=dict, export=lambda path: None)
        self.actor = NemoActor(self.policy, scheduler, shape, origin, adapters, checkpointing={})

    def close(self) -> None: ...


class Silent:
    """A recorder that keeps nothing."""

    def phase(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def resume(self, *args: Any) -> None: ...
    def history(self) -> list[Any]:
        return []

    def step(self, *args: Any) -> None: ...


@pytest.mark.parametrize("colocated", [True, False])
def test_synthesis_comes_before_sleep_and_one_refit_follows_a_steps_updates(tmp_path: Path, colocated: bool) -> None:
    cfg, runtime = settings(), Noted(colocated)
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    queries, _ = add_prompts(task.train_queries()[:6], runtime.tokenizer, 1000)
    algorithm = TAPO(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    loop = LoopConfig(tmp_path, 2, cfg.optimizer, cfg.loss, checkpoint_every=1)
    asyncio.run(train(loop, algorithm, runtime, lambda step: queries, Silent(), Stop()))
    step = [
        "refit", "generate", "sleep", "prepare_for_lp_inference", "reference", "prepare_for_training", "train", "save",
    ]  # fmt: skip
    assert runtime.calls == step * 2
    assert len(runtime.engine.sizes) >= 4  # rollouts and syntheses, twice


@pytest.mark.parametrize("pipeline", ["overlapped", "deferred"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_with_a_lag_the_policy_trains_while_the_engine_samples(
    tmp_path: Path, asynchronous: bool, pipeline: str
) -> None:
    """Every update but the last waits until a rollout of the next step is there; weights move between the two."""
    rollout = {"queries_per_step": 6, "max_tokens": 300, "logprobs": "always", "lag": 1}
    cfg = settings(rollout=rollout, pipeline=pipeline, steps=3)
    runtime = Noted(colocated=False, kind=SeparateScheduler, asynchronous=asynchronous)
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    queries, _ = add_prompts(task.train_queries()[:6], runtime.tokenizer, 1000)
    algorithm = TAPO(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    steps = {
        seed_from(cfg.seed, "rollout", step, query.uid, k): step
        for step in range(3)
        for query in queries
        for k in range(8)
    }
    arrived = [threading.Event() for _ in range(4)]
    refits: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}  # by step, those before its rollouts
    sample, update = runtime.engine.sample, runtime.policy.train

    def note_weights(prompt: tuple[int, ...], seed: int, stops: Any) -> Any:
        if seed in steps:
            refits[steps[seed]].add(runtime.calls.count("refit"))
            arrived[steps[seed]].set()
        return sample(prompt, seed, stops)

    def wait_and_train(data: Any, loss: Any, gbs: int) -> Any:
        step = runtime.calls.count("train")
        assert step == 2 or arrived[step + 1].wait(20), "the engine waits for the policy"
        return update(data, loss, gbs)

    runtime.engine.sample, runtime.policy.train = note_weights, wait_and_train  # type: ignore[method-assign]
    loop = LoopConfig(tmp_path, 3, cfg.optimizer, cfg.loss, checkpoint_every=2, lag=1)
    asyncio.run(train(loop, algorithm, runtime, lambda step: queries, Silent(), Stop()))
    assert refits == {0: {1}, 1: {1}, 2: {2}}
    scored = ["prepare_for_lp_inference", "reference", "prepare_for_training", "train"]
    hand_over, save = ["sleep", "refit"], ["prepare_for_training", "save"]  # asleep: cached prefixes are dropped
    assert [call for call in runtime.calls if call != "generate"] == [
        "refit", *scored, *hand_over, *scored, *hand_over, *save, *scored, *hand_over, *save,
    ]  # fmt: skip


def test_an_engine_of_its_own_takes_weights_once_before_it_is_asked_and_then_when_told(tmp_path: Path) -> None:
    runtime = Noted(colocated=False, kind=SeparateScheduler)
    requests = [Request(str(i), runtime.tokenizer.chat(QUESTION), seed=i, max_tokens=300) for i in range(4)]

    async def ask() -> None:
        await asyncio.gather(*map(runtime.generator.generate, requests))
        await runtime.actor.save(tmp_path)
        await runtime.generator.generate(requests[0])
        await runtime.generator.update_weights(WeightsHandle(1))

    asyncio.run(ask())
    assert runtime.calls == ["refit", "generate", "prepare_for_training", "save", "generate", "sleep", "refit"]
    runtime.engine.finish_generation = lambda: False  # type: ignore[assignment,method-assign]
    with pytest.raises(RuntimeFailure, match="the generation engine did not drop its cached prefixes"):
        asyncio.run(runtime.generator.update_weights(WeightsHandle(2)))


def test_every_update_has_the_same_rows_whatever_was_constructed(tmp_path: Path) -> None:
    """NeMo-RL's schedule advances by gbs: an update of 53 rows and one of 61 must be one step of it each."""
    cfg, runtime = settings(), Noted(colocated=True)
    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    queries, _ = add_prompts(task.train_queries()[:12], runtime.tokenizer, 1000)
    algorithm = TAPO(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    loop = LoopConfig(tmp_path, 2, cfg.optimizer, cfg.loss, checkpoint_every=1)
    asyncio.run(train(loop, algorithm, runtime, lambda step: queries[6 * step :][:6], Silent(), Stop()))
    counted = [count for _, count, _ in runtime.policy.sizes]
    assert counted[0] != counted[1] and min(counted) > 48
    assert all((rows, gbs) == (80, 80) for rows, _, gbs in runtime.policy.sizes)
    assert len(runtime.policy.widths) == 4 and all(width % 8 == 0 for width in runtime.policy.widths)


def test_an_awake_engine_is_not_refitted_and_a_sleeping_one_is_woken(tmp_path: Path) -> None:
    runtime = Noted(colocated=True)
    request = Request("a", runtime.tokenizer.chat(QUESTION), seed=1, max_tokens=300)

    async def evaluate() -> None:
        await runtime.generator.generate(request)
        await runtime.generator.generate(request)
        await runtime.actor.save(tmp_path)
        await runtime.generator.generate(request)

    asyncio.run(evaluate())
    assert runtime.calls == [
        "refit", "generate", "sleep", "prepare_for_training", "save", "offload_after_refit", "wake", "generate",
    ]  # fmt: skip


def test_the_engine_is_never_put_to_sleep_under_a_request(tmp_path: Path) -> None:
    runtime = Noted(colocated=True)

    async def both() -> None:
        async with runtime.generator._scheduler.generating():
            await runtime.actor.save(tmp_path)

    with pytest.raises(AssertionError, match="1 requests in flight"):
        asyncio.run(both())
    assert "sleep" not in runtime.calls


@pytest.mark.parametrize("kind", [ColocationScheduler, SeparateScheduler])
def test_weights_are_not_handed_over_under_a_request(kind: type[ColocationScheduler]) -> None:
    here = generator(StubEngine(), kind=kind)
    here._scheduler.in_flight = 1
    with pytest.raises(AssertionError, match="in flight"):
        asyncio.run(here.update_weights(WeightsHandle(1)))
