"""Run the cold start as a stage (section 3.2): sample, correct, mix, write, train. It can be resumed at any point.

<folder>/
    samples/, corrections/                        the answers of models, each line written as it arrives
    data.jsonl, examples.jsonl, statistics.json   the data, written when it is complete
    checkpoints/, metrics.jsonl, hf/              the training, on a runtime that trains the cold start
    trained.json                                  the settings that determined it, written after hf/
    round-1/, ...                                 the same of the rounds before the last (coldstart.rounds)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.algorithms.synthesis import Synthesis
from nemo_tapo.checkpoint import find_file_fault, make_manifest
from nemo_tapo.config.run_config import RunConfig, flatten_settings
from nemo_tapo.datasets import sft_examples
from nemo_tapo.evaluation.sample_store import list_differences
from nemo_tapo.stages.coldstart import build, corrections
from nemo_tapo.stages.coldstart.base_samples import sample_groups
from nemo_tapo.stages.coldstart.corrections import Corrections
from nemo_tapo.stages.coldstart.statistics import compute_statistics, describe_statistics, find_overlaps
from nemo_tapo.stages.coldstart.writers import check_writer, open_writer
from nemo_tapo.stages.session import MODEL_FOLDER
from nemo_tapo.stages.supervised import SupervisedTraining, train_supervised
from nemo_tapo.train import hand_over_weights
from nemo_tapo.types import Query
from nemo_tapo.utils import files

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

TRAINED, ROUND = "trained.json", "round-"
MODEL_FILES = "files"  # in trained.json: the digests of the model, beside the settings of its training
DATA_DIGEST = "data_sha256"  # in statistics.json


def check_coldstart_config(cfg: RunConfig) -> None:
    """Raise ValueError if the cold start is bound to fail. Called before engines are started."""
    check_writer(cfg)
    if cfg.coldstart.parquet:
        sft_examples.check_parquet()
    if cfg.runtime == "nemo_rl":
        if cfg.coldstart.rounds > 1:
            raise ValueError(
                f"coldstart.rounds = {cfg.coldstart.rounds}: NeMo-RL's SFT trains each round by itself. Leave it at 1, "
                "and run the command again with policy.model_name set to the trained model."
            )
        from nemo_tapo.runtime.nemo_rl.sft_recipe import check_recipe

        check_recipe(cfg)


async def coldstart_only(session: Session) -> str | None:
    """Run the cold start alone, into <output>/hf.

    On NeMo-RL, make only the data and return the text that says how to train on it.
    """
    if session.cfg.runtime != "nemo_rl":
        await run_coldstart(session, session.output)
        return None
    await prepare_data(session, session.output)
    from nemo_tapo.runtime.nemo_rl.sft_recipe import prepare_next_step

    return prepare_next_step(session.cfg, session.output)


async def run_coldstart(session: Session, folder: Path) -> Path:
    """Run the cold start's rounds. Return the Hugging Face directory of the last model, which the actor then holds.

    Every round samples from the model of the round before, corrects these answers, and trains that model on.
    Raises ValueError if a folder holds data or a model made with other settings.
    """
    for number in range(1, session.cfg.coldstart.rounds):
        earlier = folder / f"{ROUND}{number}"
        # If all is done, the engine need not be told of this model.
        if not ((folder / MODEL_FOLDER).is_dir() and is_finished(session, earlier)):
            session.progress.message(f"cold start, round {number} of {session.cfg.coldstart.rounds}")
            await run_round(session, earlier)
            await hand_over_weights(session.runtime)
        session = session.with_model(earlier / MODEL_FOLDER)
    return await run_round(session, folder)


async def run_round(session: Session, folder: Path) -> Path:
    """Run one round in `folder`, from the session's model, which engine and actor hold. Return its model."""
    result, file = folder / MODEL_FOLDER, folder / sft_examples.DATA_FILE
    if is_finished(session, folder):
        await session.runtime.actor.load_model(result)
        return result
    await prepare_data(session, folder)
    settings = session.cfg.coldstart
    epochs = build.EpochBatches(
        sft_examples.read_examples(file), settings.examples_per_step, settings.epochs, session.cfg.seed
    )
    training = SupervisedTraining(
        name="cold start",
        folder=folder,
        steps=epochs.steps,
        examples=epochs.batch,
        optimizer=settings.optimizer,
        fingerprint={**get_training_settings(session.cfg), "data": files.sha256(file)},
    )
    await train_supervised(session, training)
    trained = {**get_training_settings(session.cfg), MODEL_FILES: make_manifest(result)}
    files.replace_text(folder / TRAINED, json.dumps(trained, indent=1) + "\n")
    return result


def get_training_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that determine the training, except the data, as a flat dict."""
    c = cfg.coldstart
    own = {"epochs": c.epochs, "examples_per_step": c.examples_per_step, **flatten_settings({"optimizer": c.optimizer})}
    return {"seed": cfg.seed, **own}


def is_finished(session: Session, folder: Path) -> bool:
    """Return whether the round's model is there and as it was written; tell the user what is damaged.

    Raises ValueError if data or model were made with other settings.
    """
    result, file = folder / MODEL_FOLDER, folder / sft_examples.DATA_FILE
    if not result.is_dir():
        return False
    if file.is_file() and (fault := find_data_fault(file, get_data_settings(session.cfg))):
        session.progress.message(f"{fault} The model is there, so the data is not read.")
    fault = require_same_training(session.cfg, folder)
    if fault is not None:
        session.progress.message(f"{result}: {fault}; it is written anew from the last checkpoint")
    return fault is None


def require_same_training(cfg: RunConfig, folder: Path) -> str | None:
    """Raise ValueError, naming the differences, if the model in `folder` was made with other settings.

    Return what is wrong with its files, if it has to be written anew; None if nothing is. A model without trained.json
    and checkpoints was supplied by the user and is taken as it is.
    """
    try:
        then = dict(json.loads((folder / TRAINED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return f"it has no {TRAINED}" if (folder / "checkpoints").is_dir() else None
    except (ValueError, TypeError):
        return f"its {TRAINED} is damaged"
    listed, now = then.pop(MODEL_FILES, {}), json.loads(json.dumps(get_training_settings(cfg)))
    if changed := list_differences(then, now, sorted({*then, *now})):
        raise ValueError(
            f"{folder / MODEL_FOLDER} was trained with other settings ({'; '.join(changed)}). Choose another `output`, "
            f"or remove that folder and {folder / 'checkpoints'} to train anew on the same data."
        )
    return find_file_fault(folder / MODEL_FOLDER, listed)


async def prepare_data(session: Session, folder: Path) -> None:
    """Make the data in `folder` unless it is there. Raises ValueError if it was made with other settings.

    Also raises ValueError if there is nothing to correct, or if no correction was accepted.
    """
    file = folder / sft_examples.DATA_FILE
    if file.is_file():
        if fault := find_data_fault(file, get_data_settings(session.cfg)):
            raise ValueError(fault)
        return
    check_coldstart_config(session.cfg)
    folder.mkdir(parents=True, exist_ok=True)
    queries = session.train_queries()[: session.cfg.coldstart.queries]
    session.progress.set_phase("looking for evaluation problems among the queries")
    known = find_overlaps(queries, get_evaluation_sets(session))
    async with open_writer(session) as writer:  # opened before sampling, because an endpoint may be down
        groups = await sample_groups(session, queries, folder)
        session.progress.set_phase("pairing")
        candidates = build.collect_candidates(groups, session.cfg)
        require_pairs(session.cfg, candidates, groups.path)
        corrected = await corrections.correct_pairs(session, candidates.pairs, writer, queries, folder)
    require_accepted(session.cfg, corrected, folder)
    session.progress.set_phase("writing the examples")
    template = Synthesis(session.cfg, session.tools).template
    mixed = build.mix_examples(candidates, corrected.accepted, template, session.cfg, session.tools.tokenizer)
    counts = compute_statistics(candidates, corrected, mixed, known, get_data_settings(session.cfg))
    counts[DATA_DIGEST] = sft_examples.hash_examples(mixed.examples)
    files.replace_text(folder / sft_examples.STATISTICS_FILE, json.dumps(counts, indent=1) + "\n")
    sft_examples.write_examples(folder, mixed.examples, session.cfg.coldstart.parquet)
    for sentence in describe_statistics(counts):
        session.progress.message(sentence)


def get_evaluation_sets(session: Session) -> Mapping[str, Sequence[Query]]:
    """Return the benchmarks, or nothing if the config names none."""
    task = session.cfg.task
    return session.task.benchmarks() if task.name != "mathematics" or task.mathematics.benchmarks else {}


def require_pairs(cfg: RunConfig, candidates: build.Candidates, samples: Path) -> None:
    """Raise ValueError if corrections are configured and no query was answered both right and wrong."""
    c = cfg.coldstart
    if candidates.pairs or not (c.ift_examples or round(c.sft_examples * c.corrective_share)):
        return
    classes = candidates.query_classes
    raise ValueError(
        f"nothing can be corrected: no query was answered both right and wrong ({classes[build.ALL_RIGHT]} were "
        f"always right, {classes[build.ALL_WRONG]} never; outcomes: {dict(sorted(candidates.outcomes.items()))}). "
        f"Take other queries, or more samples a query (coldstart.samples_per_query). The responses are in {samples}."
    )


def require_accepted(cfg: RunConfig, corrected: Corrections, folder: Path) -> None:
    """Raise ValueError if there were pairs and not one correction was accepted."""
    if corrected.accepted or not corrected.outcomes:
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in corrected.outcomes.most_common())
    raise ValueError(
        f"none of {corrected.outcomes.total()} corrections was accepted ({reasons}): coldstart.writer = "
        f"{cfg.coldstart.writer} cannot do it. The answers are in {folder / corrections.FOLDER}; for another writer or "
        "prompt remove that folder: the samples are kept."
    )


def get_data_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that determine the data, as a flat dict: of the corrections, the queries and the mix."""
    c, task = cfg.coldstart, cfg.task
    queries: dict[str, Any] = {"name": task.name}
    if task.name == "arithmetic":
        queries["arithmetic"] = task.arithmetic.model_dump(exclude={"held_out_queries"})
    elif task.name == "countdown":
        queries["countdown"] = task.countdown.model_dump()
    elif task.name == "mathematics":
        queries["mathematics"] = {
            "train": task.mathematics.train or {},
            "prompt": task.mathematics.prompt,
            "exclude_benchmarks": task.mathematics.exclude_benchmarks,
        }
    elif task.name == "reasoning_gym":
        queries["reasoning_gym"] = task.reasoning_gym.model_dump()
    # of a custom task, target and arguments are in RunConfig.grading_identity
    own = {
        "queries": c.queries,
        "sft_examples": c.sft_examples,
        "correct_per_query": c.correct_per_query,
        "corrective_share": c.corrective_share,
        **({"sampled_examples": c.sampled_examples} if c.sampled_examples else {}),  # older data has none
        "ift_examples": c.ift_examples,
        "drop_duplicates": c.drop_duplicates,
        "max_length": c.max_length,
    }
    return flatten_settings({**corrections.get_correction_settings(cfg), "task": queries}) | flatten_settings(
        {"coldstart": own}
    )


def find_data_fault(file: Path, now: Mapping[str, Any]) -> str | None:
    """Say in a sentence that the data or its statistics are damaged; None if they are not.

    Raises ValueError, naming the differences, if the data was made with other settings.
    Data without a statistics.json beside it was supplied by the user and is taken as it is.
    """
    beside = file.with_name(sft_examples.STATISTICS_FILE)
    if not beside.is_file():
        return None
    anew = "to make the data anew from the samples and corrections on disk: nothing is asked again"
    try:
        counts = json.loads(beside.read_text(encoding="utf-8"))
        then, digest = counts.get("settings"), counts.get(DATA_DIGEST)
    except (ValueError, AttributeError):
        return f"{beside} is damaged; remove {file} {anew}."
    changed = list_differences(then, now, sorted({*then, *now})) if then is not None else []
    if changed:
        model = file.with_name(MODEL_FOLDER)
        remove = f"that file and {model}" if model.is_dir() else "that file"
        raise ValueError(
            f"{file} was made with other settings ({'; '.join(changed)}). Choose another `output`, or remove {remove} "
            "to make it anew; what was sampled under the same settings is not sampled again."
        )
    if digest is None or digest == files.sha256(file):
        return None
    return f"{file} is not as it was written: remove it {anew}. If you changed it on purpose, remove {beside} instead."
