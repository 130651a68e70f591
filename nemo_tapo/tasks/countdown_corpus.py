"""The pre-training corpus of the tiny Countdown model: single attempts, sums, verdicts, and examples of text skills.

An attempt is right, or, with probability `mistake_rate`, a random one that misses the target: so the model computes
honestly, its results are not always the target, and its verdict is needed. It boxes whatever it reached: no example
holds a second attempt or a turn, and none has the form of the synthesis prompt. Every generator is a function of its
seed and never uses a held-out problem.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from random import Random

from nemo_tapo.tasks.corpus_example import CorpusExample
from nemo_tapo.tasks.countdown import SIGNS, Attempt, Problem, apply_sign, write_verdict

MOST_TRIES = 10_000
LARGEST = 99  # of every result: a number with three digits is no single token
MIX: Mapping[str, float] = {"attempt": 0.4, "sums": 0.25, "repeat": 0.03, "copy": 0.12, "continue": 0.05, "check": 0.15}
# copying is learned first
EARLY_MIX: Mapping[str, float] = {"attempt": 0.2, "sums": 0.2, "repeat": 0.3, "copy": 0.2, "check": 0.1}
SUMS = 8  # lines of an example of `sums`
VERDICTS = 10  # lines of an example of `check`
_ITEMS = (*map(str, range(1, 100)), *SIGNS, "=", "(", ")")


@dataclass(frozen=True)
class CountdownCorpus:
    """Where problems come from: the settings of `task.countdown`, and the problems that are held out.

    >>> corpus = CountdownCorpus(3, (2, 20), (10, 99))
    >>> corpus.draw(1, seed=0, mix={"attempt": 1}, mistake_rate=0.0)[0].kind
    'attempt'
    """

    numbers: int
    values: tuple[int, int]
    targets: tuple[int, int]
    held_out: Collection[Problem] = field(default_factory=frozenset)

    def draw(self, n: int, seed: int, mix: Mapping[str, float] = MIX, mistake_rate: float = 0.5) -> list[CorpusExample]:
        """Draw n examples, their kinds with the weights of `mix`."""
        rng = Random(f"countdown corpus {seed}")
        kinds = rng.choices(list(mix), weights=list(mix.values()), k=n)
        return [self._make(kind, rng, mistake_rate) for kind in kinds]

    def draw_problem(self, rng: Random) -> tuple[Problem, Attempt]:
        """Draw a problem that is not held out, and an attempt that reaches its target.

        Raises ValueError if the settings leave none, or so few that none is found.
        """
        for _ in range(MOST_TRIES):
            drawn = [rng.randint(*self.values) for _ in range(self.numbers)]
            attempt = self._draw_attempt(rng, drawn)
            if attempt is not None and self.targets[0] <= attempt.results[-1] <= self.targets[1]:
                problem = Problem(tuple(sorted(drawn)), attempt.results[-1])
                if problem not in self.held_out:
                    return problem, attempt
        raise ValueError(
            f"task.countdown: of {MOST_TRIES} random attempts none reaches a target from {self.targets[0]} to "
            f"{self.targets[1]} that is not held out: widen the numbers or the targets."
        )

    def draw_failed_attempt(self, rng: Random, problem: Problem) -> Attempt:
        """Draw an attempt at random that uses every number and misses the target.

        Raises ValueError if none is found.
        """
        for _ in range(MOST_TRIES):
            attempt = self._draw_attempt(rng, rng.sample(problem.numbers, len(problem.numbers)))
            if attempt is not None and attempt.results[-1] != problem.target:
                return attempt
        raise ValueError(f"task.countdown: no attempt of {MOST_TRIES} misses the target of {problem.question!r}.")

    def _draw_attempt(self, rng: Random, numbers: list[int]) -> Attempt | None:
        """Draw signs for numbers in their order; None if a result would not be a number of at most two digits."""
        value, steps = numbers[0], []
        for number in numbers[1:]:
            sign = rng.choice(SIGNS)
            value = apply_sign(value, sign, number)
            if not 0 <= value <= LARGEST:
                return None
            steps.append((sign, number))
        return Attempt(numbers[0], tuple(steps))

    def _draw_sum(self, rng: Random) -> str:
        """Draw a step as an attempt may have it: a tiny model learns sums by heart, and attempts hold few of them."""
        while True:
            attempt = self._draw_attempt(rng, [rng.randint(*self.values) for _ in range(self.numbers)])
            if attempt is not None:
                return rng.choice(attempt.write_steps().split("\n"))

    def _make(self, kind: str, rng: Random, mistake_rate: float) -> CorpusExample:
        if kind == "repeat":
            text = "".join(rng.choices(_ITEMS, k=rng.randint(2, 8)))
            return CorpusExample(f"Repeat: {text}", "\n".join([text] * 4), kind)
        if kind == "sums":
            return CorpusExample("Go on.", "\n".join(self._draw_sum(rng) for _ in range(SUMS)), kind)
        if kind == "check":
            return self._draw_verdicts(rng)
        problem, attempt = self.draw_problem(rng)
        if rng.random() < mistake_rate:
            attempt = self.draw_failed_attempt(rng, problem)
        written = attempt.write(problem.target)
        if kind == "attempt":
            return CorpusExample(problem.question, written, kind)
        text = written if rng.random() < 0.6 else self._draw_passage(rng)
        if kind == "copy":
            return CorpusExample(f"Copy this text.\n{text}", text, kind)
        assert kind == "continue", kind
        lines = text.split("\n")
        place = rng.randrange(len(lines) - 1)
        prompt = f"Text:\n{text}\nGo on after this line:\n{lines[place]}"
        return CorpusExample(prompt, "\n".join(lines[place + 1 :]), kind)

    def _draw_verdicts(self, rng: Random) -> CorpusExample:
        """Draw many comparisons, half of them of equal numbers: all with one target, as the question has it, or not."""
        targets = [rng.randint(1, LARGEST)] * VERDICTS
        prompt = f"Check this.\nTarget: {targets[0]}"
        if rng.random() < 0.5:
            prompt, targets = "Check this.", [rng.randint(1, LARGEST) for _ in targets]
        others = [target if rng.random() < 0.5 else rng.randint(0, LARGEST) for target in targets]
        return CorpusExample(prompt, "\n".join(map(write_verdict, others, targets)), "check")

    def _draw_passage(self, rng: Random) -> str:
        """Draw lines that can be copied and not guessed."""
        return "\n".join("".join(rng.choices(_ITEMS, k=rng.randint(2, 7))) for _ in range(rng.randint(2, 6)))
