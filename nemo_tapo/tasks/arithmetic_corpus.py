"""The corpus of the tiny base: solutions with the mistakes of arithmetic.py, and the skills with text that a real base
has from its pre-training and a tiny one must be given: repeat, copy, go on, mark, compare, change.

None of it has the form of the synthesis prompt. Every generator is a function of its seed and rejects held-out
problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from nemo_tapo.tasks.arithmetic import MISTAKE_RATE, marked, problem, written


@dataclass(frozen=True)
class Example:
    """One supervised example: `prompt` is the user's turn, `response` the assistant's, both plain text."""

    prompt: str
    response: str
    kind: str  # a key of `CORPUS_MIX`


def solution_example(rng: Random, mistake_rate: float = MISTAKE_RATE) -> Example:
    """A problem and its solution as the corpus writes it, mistakes included."""
    task = problem(rng)
    return Example(task.question, written(task, rng, mistake_rate), "solution")


# The skills with text that a real base model has from its pre-training and a tiny one must be given.
_CHARACTERS = [chr(code) for code in range(0x21, 0x7F)]


def _gibberish(rng: Random) -> str:
    """A line of random characters: what can be copied by looking only, never by guessing."""
    return "".join(rng.choices(_CHARACTERS, k=rng.randint(2, 9)))


def _passages(rng: Random) -> tuple[str, str]:
    """Two versions of one passage that differ in at least one line; two solutions, or lines of gibberish."""
    while rng.random() < 0.7:
        task = problem(rng)
        one, two = written(task, rng), written(task, rng)
        if one != two:
            return one, two
    lines = [_gibberish(rng) for _ in range(rng.randint(2, 5))]
    place = rng.randrange(len(lines))
    changed = _gibberish(rng)
    while changed == lines[place]:
        changed = _gibberish(rng)
    return "\n".join(lines), "\n".join([*lines[:place], changed, *lines[place + 1 :]])


def _first_difference(one: str, two: str) -> tuple[list[str], list[str], int]:
    """Both texts as lines, and the index of the first line that differs."""
    old, new = one.split("\n"), two.split("\n")
    return old, new, next(i for i in range(min(len(old), len(new))) if old[i] != new[i])


def copy_example(rng: Random) -> Example:
    """Copy a passage."""
    text, _ = _passages(rng)
    return Example(f"Copy this text.\n{text}", text, "copy")


def repeat_example(rng: Random) -> Example:
    """Write a random string over and over: the quickest teacher of looking things up in the context."""
    text = "".join(rng.choices(_CHARACTERS, k=rng.randint(3, 12)))
    return Example(f"Repeat: {text}", "\n".join([text] * max(3, 48 // (len(text) + 1))), "repeat")


def continue_example(rng: Random) -> Example:
    """Given a passage and a line of it, write what follows the line."""
    text, _ = _passages(rng)
    lines = text.split("\n")
    place = rng.randrange(len(lines) - 1)
    prompt = f"Text:\n{text}\nGo on after this line:\n{lines[place]}"
    return Example(prompt, "\n".join(lines[place + 1 :]), "continue")


def check_example(rng: Random) -> Example:
    """Mark a written solution, with no other to compare it to."""
    task = problem(rng)
    response = written(task, rng)
    return Example(f"Check this.\n{response}", marked(task, response), "check")


def compare_example(rng: Random) -> Example:
    """Name the first line in which two passages differ."""
    one, two = _passages(rng)
    old, new, place = _first_difference(one, two)
    prompt = f"First text:\n{one}\nSecond text:\n{two}\nWhich line differs first?"
    return Example(prompt, f"First: {old[place]}\nSecond: {new[place]}", "compare")


def change_example(rng: Random) -> Example:
    """Write two versions as a change list: the same lines, `< ` the old one, `> ` the new one."""
    one, two = _passages(rng)
    old, new, place = _first_difference(one, two)
    prompt = f"Old text:\n{one}\nNew text:\n{two}\nShow the first change."
    lines = [*old[:place], f"< {old[place]}", f"> {new[place]}", *new[place + 1 :]]
    return Example(prompt, "\n".join(lines), "change")


_MAKERS: Mapping[str, Callable[[Random], Example]] = {
    "repeat": repeat_example,
    "copy": copy_example,
    "continue": continue_example,
    "check": check_example,
    "compare": compare_example,
    "change": change_example,
}
CORPUS_MIX: Mapping[str, float] = {
    "solution": 0.57,
    "repeat": 0.03,
    "copy": 0.06,
    "continue": 0.04,
    "check": 0.1,
    "compare": 0.05,
    "change": 0.15,
}


def corpus(
    n: int, seed: int, mix: Mapping[str, float] = CORPUS_MIX, mistake_rate: float = MISTAKE_RATE
) -> list[Example]:
    """n examples of the base's corpus, the kinds drawn with the weights of `mix`.

    Raises:
        ValueError: `mix` names a kind that the corpus does not have.
    """
    unknown = set(mix) - set(CORPUS_MIX)
    if unknown:
        raise ValueError(f"no such kind of example: {sorted(unknown)}; there are {sorted(CORPUS_MIX)}")
    rng = Random(f"corpus {seed}")
    kinds = rng.choices(list(mix), weights=list(mix.values()), k=n)
    return [solution_example(rng, mistake_rate) if kind == "solution" else _MAKERS[kind](rng) for kind in kinds]
