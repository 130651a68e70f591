"""The cold start's data and configuration, read by NeMo-RL's own SFT: its loader, processor and loss mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.datasets import sft_examples
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.nemo_rl.sft_recipe import SFT_CONFIG, check_recipe, complete_recipe, prepare_next_step
from nemo_tapo.tasks import arithmetic

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "assets" / "tiny-coldstart"
RECIPE = ROOT / "examples" / "configs" / "sft-qwen3-8b-1n8g-megatron.yaml"
pytestmark = pytest.mark.nemo_rl


def run_config(folder: Path, **coldstart: Any) -> RunConfig:
    return validate(
        {
            "output": str(folder),
            "runtime": "nemo_rl",
            "model": {"path": str(MODEL), "max_length": 400},
            "coldstart": {"sft_recipe": str(RECIPE), "examples_per_step": 4, "writer": "model"} | coldstart,
        }
    )


def examples(tokenizer: HFTokenizer, count: int) -> list[sft_examples.SftExample]:
    """Right solutions and their checks, as the data holds them."""
    made = []
    for i, problem in enumerate(arithmetic.draw_problems(count, 3, 2, 4)):
        prompt, response = problem.question, "\n".join(problem.lines)
        if i % 3 == 0:  # of the synthesis' form, braces and tags in the text
            prompt = arithmetic.SYNTHESIS_PROMPT.format(question=prompt, wrong=response, reference=response)
            response = f"<analysis>{{fine}}</analysis>\n<reconstruction>{response}</reconstruction>"
        ids = (*tokenizer.encode(response), tokenizer.eos_id)
        source = sft_examples.ExampleSource(f"train-{i}", f"train-{i}/0", f"train-{i}/1" if i % 3 == 0 else None)
        made.append(
            sft_examples.SftExample(f"e{i}", "sft", "correct", prompt, response, tokenizer.chat(prompt), ids, source)
        )
    return made


@pytest.fixture
def written(tmp_path: Path) -> tuple[RunConfig, list[sft_examples.SftExample]]:
    cfg, made = run_config(tmp_path), examples(HFTokenizer(MODEL), 13)
    sft_examples.write_examples(tmp_path, made)
    return cfg, made


def test_nemo_rls_loader_sees_the_same_tokens_and_trains_on_the_response_alone(
    written: tuple[RunConfig, list[sft_examples.SftExample]],
) -> None:
    from examples.run_sft import setup_data  # NeMo-RL's
    from nemo_rl.algorithms.sft import MasterConfig
    from nemo_rl.algorithms.utils import get_tokenizer
    from nemo_rl.data.llm_message_utils import add_loss_mask_to_message_log
    from nemo_rl.utils.config import load_config

    cfg, made = written
    prepare_next_step(cfg, cfg.output)
    master = MasterConfig(**load_config(cfg.output / SFT_CONFIG))
    tokenizer = get_tokenizer(master.policy["tokenizer"])
    dataset, validation = setup_data(tokenizer, master.data)
    assert len(dataset) == len(made) and validation is None
    newline = HFTokenizer(MODEL).encode("\n")
    for i, example in enumerate(made):
        datum = dataset[i]
        add_loss_mask_to_message_log([datum["message_log"]], roles_to_train_on=["assistant"])
        user, assistant = datum["message_log"]
        assert tuple(user["token_ids"].tolist()) == example.prompt_ids
        assert tuple(assistant["token_ids"].tolist()) == (*example.response_ids, *newline)  # of the chat template
        assert not user["token_loss_mask"].any() and assistant["token_loss_mask"].all()
        assert datum["loss_multiplier"] == 1.0


def test_the_written_configuration_has_our_steps_and_schedule(
    written: tuple[RunConfig, list[sft_examples.SftExample]],
) -> None:
    cfg, _ = written
    told = prepare_next_step(cfg, cfg.output)
    assert f"run_sft.py --config {cfg.output / SFT_CONFIG}" in told and told.startswith("13 examples are in")
    master = yaml.safe_load((cfg.output / SFT_CONFIG).read_text())
    assert (master["sft"]["max_num_steps"], master["sft"]["max_num_epochs"]) == (9, 3)  # 3 epochs of 13 // 4
    assert master["policy"]["model_name"] == master["policy"]["tokenizer"]["name"] == str(MODEL)
    assert master["policy"]["train_global_batch_size"] == 4
    megatron = master["policy"]["megatron_cfg"]
    assert (megatron["optimizer"]["lr"], megatron["optimizer"]["min_lr"]) == (5e-4, 0.0)
    scheduler = megatron["scheduler"]
    # 9 steps, 8 of warm-up; Megatron counts the updates done, and its first one has lr_warmup_init
    assert (scheduler["lr_decay_style"], scheduler["lr_decay_iters"], scheduler["lr_warmup_iters"]) == ("cosine", 8, 7)
    assert scheduler["lr_warmup_init"] == pytest.approx(5e-4 / 8)
    assert Path(master["data"]["train"]["data_path"]) == cfg.output / "examples.jsonl"


def test_recipes_that_cannot_train_the_data_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_total_sequence_length = 16512 is too little for examples of 16500"):
        check_recipe(run_config(tmp_path, max_length=16500))
    with pytest.raises(ValueError, match=r"fewer than one step's coldstart\.examples_per_step = 4"):
        complete_recipe(run_config(tmp_path), tmp_path, 3, 100)
    with pytest.raises(ValueError, match=r"sft_recipe: no config file .*none\.yaml"):
        check_recipe(run_config(tmp_path, sft_recipe=str(tmp_path / "none.yaml")))
    with pytest.raises(ValueError, match="no recipe of NeMo-RL's SFT"):
        check_recipe(run_config(tmp_path, sft_recipe=str(RECIPE.with_name("tapo-qwen3-8b-1n8g-megatron.yaml"))))


def test_without_a_recipe_it_says_what_to_run(written: tuple[RunConfig, list[sft_examples.SftExample]]) -> None:
    cfg, _ = written
    bare = cfg.model_copy(update={"coldstart": cfg.coldstart.model_copy(update={"sft_recipe": None})})
    assert "examples/run_sft.py" in prepare_next_step(bare, cfg.output) and not (cfg.output / SFT_CONFIG).exists()


def test_every_key_of_the_recipe_is_one_of_nemo_rls() -> None:
    """Its SFT takes any key without a word: a misspelt one would do nothing."""
    from nemo_rl.utils.config import load_config
    from omegaconf import OmegaConf

    from nemo_tapo.runtime.nemo_rl.config.checkout import find_source

    source, own = find_source(), yaml.safe_load(RECIPE.read_text())
    assert source is not None
    parent = load_config(source / "examples" / "configs" / own.pop("defaults"))
    theirs = OmegaConf.to_container(parent, resolve=False)
    documented = {"data.train.data_path", "data._override_", "policy.tokenizer.chat_template_kwargs.enable_thinking"}
    assert set(paths(own)) - set(paths(theirs)) == documented


def paths(values: Any, prefix: str = "") -> list[str]:
    """Dotted paths of the leaves."""
    if not isinstance(values, dict):
        return [prefix.rstrip(".")]
    return [path for name, value in values.items() for path in paths(value, f"{prefix}{name}.")]


@pytest.mark.timeout(600)
def test_the_command_makes_the_data_with_nemo_rls_engine_and_says_what_to_run(tmp_path: Path) -> None:
    """On CPUs: NeMo-RL's setup and its engine's interface; it trains nothing."""
    import asyncio

    import nemo_parts as parts

    from nemo_tapo.runtime.local import ray_cluster
    from nemo_tapo.runtime.nemo_rl.runtime import NemoRLRuntime
    from nemo_tapo.stages.registry import STAGES
    from nemo_tapo.stages.session import Session
    from nemo_tapo.tracking.progress import Progress
    from nemo_tapo.utils.signals import Stop

    folder = tmp_path / "run"
    coldstart = {
        "queries": 8, "writer": "model", "sft_examples": 8, "ift_examples": 8, "examples_per_step": 2,
        "sft_recipe": str(RECIPE),
    }  # fmt: skip
    cfg = parts.run_config(folder, coldstart=coldstart)

    async def make(factory: Any, progress: Progress) -> str | None:
        master = parts.master_config(folder, 2)
        runtime = await NemoRLRuntime.start(master, cfg, command="coldstart", policy_factory=factory)
        session = Session(cfg, runtime, progress, Stop())
        try:
            return await STAGES["coldstart"](session)
        finally:
            session.task.close()
            runtime.close()

    here = ray_cluster.start(parts.CPUS)
    try:
        with parts.on_cpus(folder) as factory, Progress() as progress:
            told = asyncio.run(make(factory, progress))
    finally:
        ray_cluster.stop(here)
    assert told is not None and str(folder / SFT_CONFIG) in told and (folder / SFT_CONFIG).is_file()
    assert sft_examples.read_examples(folder / "data.jsonl") and not (folder / "hf").exists()
