"""A data set of the package reasoning-gym (Apache-2.0) as an `interfaces.Task`: generated puzzles and their scores.

Item i of a data set with seed s is drawn from s + i. Each run's seed has a range of its own for training; the benchmark
is drawn from HELD_OUT_SEED on, the same for every run. What both have in words is set aside from training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from nemo_tapo.config.sections import TaskConfig
from nemo_tapo.datasets.sets import TRAIN
from nemo_tapo.grading.boxed import find_last_boxed
from nemo_tapo.grading.calls import FunctionSpec
from nemo_tapo.grading.user_grader import UserGrader
from nemo_tapo.tasks.mathematics import fill_template
from nemo_tapo.tasks.prompts import ERROR_QUOTE, FULL_PROMPT, QUOTING_PROMPT, SYNTHESIS_PROMPT
from nemo_tapo.types import RIGHT, WRONG, Grade, Provenance, Query, SetAside, is_correct
from nemo_tapo.utils.user_code import describe_error

KEY, LICENCE = "task.reasoning_gym", "Apache-2.0"
HELD_OUT_SEED = 1_000_000_000  # above every seed that training draws from, and small enough for numpy
SEEDS_PER_RUN, RANGES = 1_000_000, 900  # run seeds that differ by a multiple of RANGES draw the same
SEED, INDEX = "seed", "index"  # in Query.row, to draw the item again: as JSON it would lose its tuples
NO_GOLD = "(scored by the data set)"  # stands for an answer where the data set gives none


class ReasoningGymTask:
    """The puzzles of one data set. They are generated when they are first asked for."""

    synthesis_prompt, full_prompt = SYNTHESIS_PROMPT, FULL_PROMPT
    quoting_prompt, error_quote = QUOTING_PROMPT, ERROR_QUOTE

    def __init__(self, cfg: TaskConfig, seed: int) -> None:
        """Prepare the scoring. Raises ValueError with a sentence if the package or the data set is not there."""
        self.cfg, self.seed = cfg.reasoning_gym, seed
        create_dataset(self.cfg.dataset, self.cfg.settings, 0, 1)
        arguments = {"dataset": self.cfg.dataset, "settings": dict(self.cfg.settings)}
        self._grader = UserGrader(cfg.grading, [FunctionSpec(KEY, f"{__name__}:Scorer", True, arguments)])
        sizes = self.cfg.train_queries, self.cfg.held_out_queries
        self._sets = DrawnSets(self.cfg.dataset, seed, sizes, self.cfg.prompt, self._draw)

    def train_queries(self) -> Sequence[Query]:
        """Return the training queries that differ from each other and from the benchmark's."""
        return self._sets.train_queries()

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the held-out queries under the data set's name."""
        return self._sets.benchmarks()

    def provenance(self, name: str) -> Provenance:
        """Return the package's version, the data set, and the queries that are there twice."""
        return self._sets.provenance(name)

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return what the data set says of an item."""
        return {"metadata": redraw_item(self.cfg.dataset, self.cfg.settings, query)["metadata"]}

    def locate_error(self, query: Query, response: str) -> int | None:
        """Return None: nothing but the final answer is scored."""
        return None

    async def grade(self, query: Query, response: str) -> Grade:
        """Score the content of the last box by the data set's own function, within the deadline."""
        answer = (find_last_boxed(response) or "").strip()
        return await self._grader.grade(0, query, answer) if answer else Grade(0.0, "no_answer")

    def close(self) -> None:
        """End the processes."""
        self._grader.close()

    def _draw(self, seed: int, size: int) -> Any:
        return create_dataset(self.cfg.dataset, self.cfg.settings, seed, size)


class DrawnSets:
    """The training set and the benchmark of a data set, each drawn when it is first asked for."""

    def __init__(
        self,
        dataset: str,
        seed: int,
        sizes: tuple[int, int],
        prompt: str,
        draw: Callable[[int, int], Any],
    ) -> None:
        """Draw by `draw(seed, size)`, which returns items. `sizes`: of the training set and of the benchmark."""
        self._dataset, self._seed, self._sizes, self._prompt, self._draw = dataset, seed, sizes, prompt, draw
        self._sets: dict[str, tuple[list[Query], Provenance]] = {}

    def train_queries(self) -> Sequence[Query]:
        """Return the training queries that differ from each other and from the benchmark's."""
        held_out = {key_of(query.question) for query in self._read(self._dataset)}
        return self._read(TRAIN, held_out)

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the held-out queries under the data set's name, the same for every seed."""
        return {self._dataset: self._read(self._dataset)}

    def provenance(self, name: str) -> Provenance:
        """Return the package's version, the data set with its seed, and the queries that are there twice."""
        return self._sets[name][1]

    def _read(self, name: str, held_out: frozenset[str] | set[str] = frozenset()) -> list[Query]:
        if name not in self._sets:
            training, (train_size, held_out_size) = name == TRAIN, self._sizes
            seed = self._seed % RANGES * SEEDS_PER_RUN if training else HELD_OUT_SEED
            size = train_size if training else held_out_size
            items = self._draw(seed, size)
            queries, aside = make_queries(items, seed, "train" if training else "test", self._prompt, held_out)
            source = f"reasoning-gym {version('reasoning-gym')}, {self._dataset} from seed {seed}"
            self._sets[name] = queries, Provenance(source, size, tuple(aside), LICENCE)
        return self._sets[name][0]


class Scorer:
    """What a grader calls: the data set's function that scores an answer."""

    def __init__(self, dataset: str, settings: Mapping[str, Any]) -> None:
        self.name, self.settings = dataset, settings
        self.dataset = create_dataset(dataset, settings, 0, 1)
        self._items: dict[str, dict[str, Any]] = {}  # by the query's uid: drawing one may take a quarter of a second

    def grade(self, query: Query, answer: str) -> Grade:
        """Score one answer; the data sets give from 0 to 1."""
        if query.uid not in self._items:
            self._items[query.uid] = redraw_item(self.name, self.settings, query)
        reward = float(self.dataset.score_answer(answer, self._items[query.uid]))
        return Grade(reward, RIGHT if is_correct(reward) else WRONG, answer)


def create_dataset(name: str, settings: Mapping[str, Any], seed: int, size: int) -> Any:
    """Create a data set of reasoning-gym. Raises ValueError with a sentence if that fails."""
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError("reasoning-gym draws the puzzles: pip install 'nemo-tapo[reasoning-gym]'.") from None
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **settings)
    except Exception as error:
        raise ValueError(f"{KEY}: the data set {name} cannot be made: {describe_error(error)}.") from None


def make_queries(
    items: Any, seed: int, prefix: str, prompt: str, held_out: frozenset[str] | set[str]
) -> tuple[list[Query], list[SetAside]]:
    """Return the queries of a data set's items, and those set aside because the same words were there before."""
    queries: list[Query] = []
    aside: list[SetAside] = []
    seen: dict[str, str] = {}
    for index in range(len(items)):
        entry = items[index]
        uid, question = f"{prefix}-{index}", str(entry["question"])
        key = key_of(question)
        if key in held_out:
            aside.append(SetAside(uid, "in_benchmark", "", question))
        elif key in seen:
            aside.append(SetAside(uid, "duplicate", f"of {seen[key]}", question))
        else:
            seen[key] = uid
            answer = NO_GOLD if entry["answer"] is None else str(entry["answer"])
            row = {SEED: seed, INDEX: index}
            queries.append(Query(uid, question, answer, prompt=fill_template(prompt, question), row=row))
    return queries, aside


def redraw_item(name: str, settings: Mapping[str, Any], query: Query) -> dict[str, Any]:
    """Return the data set's item of a query. Raises ValueError if its seed gives another question."""
    seed, index = query.row[SEED], query.row[INDEX]
    item = dict(create_dataset(name, settings, seed, index + 1)[index])
    if str(item["question"]) != query.question:
        raise ValueError(f"{name} draws another question {index} from seed {seed} than before.")
    return item


def key_of(question: str) -> str:
    r"""Return what equal questions share, whatever their blanks.

    >>> key_of("47 +\n 38")
    '47 + 38'
    """
    return " ".join(question.split())
