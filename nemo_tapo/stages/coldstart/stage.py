"""The cold start as a stage (section 3.2): sample, correct, mix, write, train. It goes on wherever it was stopped.

<folder>/
    samples/, corrections/                        what was asked of models, a line as it comes
    data.jsonl, examples.jsonl, statistics.json   the data, written when all of it is there
    checkpoints/, metrics.jsonl, hf/              the training, on a runtime that trains it
    trained.json                                  what decided it, once hf/ is there
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.algorithms.synthesis import Synthesis
from nemo_tapo.config.run_config import RunConfig, flatten
from nemo_tapo.datasets import sft_examples
from nemo_tapo.evaluation.sample_store import differences
from nemo_tapo.stages.coldstart import build, corrections
from nemo_tapo.stages.coldstart.base_samples import sample
from nemo_tapo.stages.coldstart.corrections import Corrections
from nemo_tapo.stages.coldstart.statistics import in_words, overlaps, statistics
from nemo_tapo.stages.coldstart.writers import check_writer, open_writer
from nemo_tapo.stages.session import MODEL
from nemo_tapo.stages.supervised import SupervisedTraining, train_supervised
from nemo_tapo.types import Query
from nemo_tapo.utils import files

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

TRAINED = "trained.json"


def check(cfg: RunConfig) -> None:
    """Raises ValueError for a cold start that could not end well; asked before engines are started."""
    check_writer(cfg)
    if cfg.coldstart.parquet:
        sft_examples.check_parquet()
    if cfg.runtime == "nemo_rl":
        from nemo_tapo.runtime.nemo_rl.sft_recipe import check_recipe

        check_recipe(cfg)


async def coldstart_only(session: Session) -> str | None:
    """The cold start alone: <output>/hf; on NeMo-RL the data, and what trains on it."""
    if session.cfg.runtime != "nemo_rl":
        await coldstart(session, session.output)
        return None
    await data_of(session, session.output)
    from nemo_tapo.runtime.nemo_rl.sft_recipe import next_step

    return next_step(session.cfg, session.output)


async def coldstart(session: Session, folder: Path) -> Path:
    """Returns the Hugging Face directory of the cold-start model; the actor holds it."""
    result, file = folder / MODEL, folder / sft_examples.DATA
    if result.is_dir():
        require_made_so(session.cfg, folder)
        await session.runtime.actor.load_model(result)
        return result
    await data_of(session, folder)
    settings = session.cfg.coldstart
    epochs = build.Epochs(sft_examples.read(file), settings.examples_per_step, settings.epochs, session.cfg.seed)
    training = SupervisedTraining(
        name="cold start",
        folder=folder,
        steps=epochs.steps,
        examples=epochs.batch,
        optimizer=settings.optimizer,
        fingerprint={**training_of(session.cfg), "data": files.sha256(file)},
    )
    await train_supervised(session, training)
    files.replace_text(folder / TRAINED, json.dumps(training_of(session.cfg), indent=1) + "\n")
    return result


def training_of(cfg: RunConfig) -> dict[str, Any]:
    """What decides the training, the data aside. Flat."""
    c = cfg.coldstart
    own = {"epochs": c.epochs, "examples_per_step": c.examples_per_step, **flatten({"optimizer": c.optimizer})}
    return {"seed": cfg.seed, **own}


def require_made_so(cfg: RunConfig, folder: Path) -> None:
    """Raises ValueError, naming the differences, if the model that is in `folder` was made with other settings."""
    file, trained = folder / sft_examples.DATA, folder / TRAINED
    if file.is_file():
        require_same(file, settings_of(cfg))
    if not trained.is_file():
        return
    then, now = json.loads(trained.read_text()), json.loads(json.dumps(training_of(cfg)))
    if changed := differences(then, now, sorted({*then, *now})):
        raise ValueError(
            f"{folder / MODEL} was trained with other settings ({'; '.join(changed)}). Choose another `output`, or "
            f"remove that folder and {folder / 'checkpoints'} to train anew on the same data."
        )


async def data_of(session: Session, folder: Path) -> None:
    """The data in `folder`: made, or found there. Raises ValueError if it was made with other settings."""
    file = folder / sft_examples.DATA
    if file.is_file():
        require_same(file, settings_of(session.cfg))
        return
    check(session.cfg)
    folder.mkdir(parents=True, exist_ok=True)
    queries = session.train_queries()[: session.cfg.coldstart.queries]
    session.progress.status("looking for evaluation problems among the queries")
    known = overlaps(queries, evaluation_sets(session))
    async with open_writer(session) as writer:  # before anything is sampled: it may be down
        groups = await sample(session, queries, folder)
        session.progress.status("pairing")
        found = build.survey(groups, session.cfg)
        require_pairs(session.cfg, found, groups.path)
        corrected = await corrections.correct(session, found.pairs, writer, queries, folder)
    require_accepted(session.cfg, corrected, folder)
    session.progress.status("writing the examples")
    template = Synthesis(session.cfg, session.tools).template
    mixed = build.mix(found, corrected.accepted, template, session.cfg, session.tools.tokenizer)
    counts = statistics(found, corrected, mixed, known, settings_of(session.cfg))
    files.replace_text(folder / sft_examples.STATISTICS, json.dumps(counts, indent=1) + "\n")
    sft_examples.write(folder, mixed.examples, session.cfg.coldstart.parquet)
    for sentence in in_words(counts):
        session.progress.message(sentence)


def evaluation_sets(session: Session) -> Mapping[str, Sequence[Query]]:
    """The benchmarks, as far as the config names any."""
    task = session.cfg.task
    return session.task.benchmarks() if task.name != "mathematics" or task.mathematics.benchmarks else {}


def require_pairs(cfg: RunConfig, found: build.Survey, samples: Path) -> None:
    """Raises ValueError if corrections are wished for and no query was answered both right and wrong."""
    c = cfg.coldstart
    if found.pairs or not (c.ift_examples or round(c.sft_examples * c.corrective_share)):
        return
    raise ValueError(
        f"nothing can be corrected: no query was answered both right and wrong ({found.fates[build.ALL_RIGHT]} were "
        f"always right, {found.fates[build.ALL_WRONG]} never; outcomes: {dict(sorted(found.outcomes.items()))}). "
        f"Take other queries, or more samples a query (coldstart.samples_per_query). The responses are in {samples}."
    )


def require_accepted(cfg: RunConfig, corrected: Corrections, folder: Path) -> None:
    """Raises ValueError if there were pairs and not one correction was accepted."""
    if corrected.accepted or not corrected.outcomes:
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in corrected.outcomes.most_common())
    raise ValueError(
        f"none of {corrected.outcomes.total()} corrections was accepted ({reasons}): coldstart.writer = "
        f"{cfg.coldstart.writer} cannot do it. The answers are in {folder / corrections.FOLDER}; for another writer or "
        "prompt remove that folder: the samples are kept."
    )


def settings_of(cfg: RunConfig) -> dict[str, Any]:
    """What decides the data: the settings of the corrections, the queries, the mix. Flat."""
    c, task = cfg.coldstart, cfg.task
    queries: dict[str, Any] = {"name": task.name}
    if task.name == "arithmetic":
        queries["arithmetic"] = task.arithmetic.model_dump(exclude={"held_out_queries"})
    elif task.name == "mathematics":
        queries["mathematics"] = {
            "train": task.mathematics.train or {},
            "prompt": task.mathematics.prompt,
            "exclude_benchmarks": task.mathematics.exclude_benchmarks,
        }
    own = {
        "queries": c.queries,
        "sft_examples": c.sft_examples,
        "corrective_share": c.corrective_share,
        "ift_examples": c.ift_examples,
        "drop_duplicates": c.drop_duplicates,
        "max_length": c.max_length,
    }
    return flatten({**corrections.settings_of(cfg), "task": queries}) | flatten({"coldstart": own})


def require_same(file: Path, now: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the differences, if the data was made with other settings.

    Data without statistics beside it is somebody's own and taken as it is.
    """
    beside = file.with_name(sft_examples.STATISTICS)
    then = json.loads(beside.read_text()).get("settings") if beside.is_file() else None
    changed = differences(then, now, sorted({*then, *now})) if then is not None else []
    if changed:
        model = file.with_name(MODEL)
        remove = f"that file and {model}" if model.is_dir() else "that file"
        raise ValueError(
            f"{file} was made with other settings ({'; '.join(changed)}). Choose another `output`, or remove {remove} "
            "to make it anew; what was sampled under the same settings is not sampled again."
        )
