"""The pre-training corpus of the tiny base model.

It contains solutions with the mistakes of arithmetic.py, and examples of text skills. A real base model has these
skills from its pre-training; the tiny one has to be taught them: repeat, copy, continue, check, compare, change. No
example has the form of the synthesis prompt. Every generator is a function of its seed and never uses a held-out
problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from nemo_tapo.tasks.arithmetic import MISTAKE_RATE, draw_problem, mark_lines, write_solution
from nemo_tapo.tasks.corpus_example import CorpusExample


def make_solution_example(rng: Random, mistake_rate: float = MISTAKE_RATE) -> CorpusExample:
    """Make an example of a problem and its solution, mistakes included."""
    task = draw_problem(rng)
    return CorpusExample(task.question, write_solution(task, rng, mistake_rate), "solution")


_CHARACTERS = [chr(code) for code in range(0x21, 0x7F)]


def _draw_gibberish(rng: Random) -> str:
    """Draw a line of random characters, which a model can copy but not guess."""
    return "".join(rng.choices(_CHARACTERS, k=rng.randint(2, 9)))


def _draw_passages(rng: Random) -> tuple[str, str]:
    """Draw two versions of a passage that differ in at least one line: two solutions, or lines of gibberish."""
    while rng.random() < 0.7:
        task = draw_problem(rng)
        one, two = write_solution(task, rng), write_solution(task, rng)
        if one != two:
            return one, two
    lines = [_draw_gibberish(rng) for _ in range(rng.randint(2, 5))]
    place = rng.randrange(len(lines))
    changed = _draw_gibberish(rng)
    while changed == lines[place]:
        changed = _draw_gibberish(rng)
    return "\n".join(lines), "\n".join([*lines[:place], changed, *lines[place + 1 :]])


def _find_first_difference(one: str, two: str) -> tuple[list[str], list[str], int]:
    """Return both texts as lines, and the index of the first line that differs."""
    old, new = one.split("\n"), two.split("\n")
    return old, new, next(i for i in range(min(len(old), len(new))) if old[i] != new[i])


def make_copy_example(rng: Random) -> CorpusExample:
    """Make an example that copies a passage."""
    text, _ = _draw_passages(rng)
    return CorpusExample(f"Copy this text.\n{text}", text, "copy")


def make_repeat_example(rng: Random) -> CorpusExample:
    """Make an example that repeats a random string. It is the fastest way to teach looking up text in the context."""
    text = "".join(rng.choices(_CHARACTERS, k=rng.randint(3, 12)))
    return CorpusExample(f"Repeat: {text}", "\n".join([text] * max(3, 48 // (len(text) + 1))), "repeat")


def make_continue_example(rng: Random) -> CorpusExample:
    """Make an example that gives a passage and one of its lines, and continues after that line."""
    text, _ = _draw_passages(rng)
    lines = text.split("\n")
    place = rng.randrange(len(lines) - 1)
    prompt = f"Text:\n{text}\nGo on after this line:\n{lines[place]}"
    return CorpusExample(prompt, "\n".join(lines[place + 1 :]), "continue")


def make_check_example(rng: Random) -> CorpusExample:
    """Make an example that marks a solution without a right one to compare with."""
    task = draw_problem(rng)
    response = write_solution(task, rng)
    return CorpusExample(f"Check this.\n{response}", mark_lines(task, response), "check")


def make_compare_example(rng: Random) -> CorpusExample:
    """Make an example that names the first line in which two passages differ."""
    one, two = _draw_passages(rng)
    old, new, place = _find_first_difference(one, two)
    prompt = f"First text:\n{one}\nSecond text:\n{two}\nWhich line differs first?"
    return CorpusExample(prompt, f"First: {old[place]}\nSecond: {new[place]}", "compare")


def make_change_example(rng: Random) -> CorpusExample:
    """Make an example that writes two versions as a change list: equal lines, `< ` the old one, `> ` the new one."""
    one, two = _draw_passages(rng)
    old, new, place = _find_first_difference(one, two)
    prompt = f"Old text:\n{one}\nNew text:\n{two}\nShow the first change."
    lines = [*old[:place], f"< {old[place]}", f"> {new[place]}", *new[place + 1 :]]
    return CorpusExample(prompt, "\n".join(lines), "change")


_MAKERS: Mapping[str, Callable[[Random], CorpusExample]] = {
    "repeat": make_repeat_example,
    "copy": make_copy_example,
    "continue": make_continue_example,
    "check": make_check_example,
    "compare": make_compare_example,
    "change": make_change_example,
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


def make_corpus(
    n: int, seed: int, mix: Mapping[str, float] = CORPUS_MIX, mistake_rate: float = MISTAKE_RATE
) -> list[CorpusExample]:
    """Draw n examples of the corpus, their kinds with the weights of `mix`.

    Raises ValueError if `mix` names a kind that the corpus does not have.
    """
    unknown = set(mix) - set(CORPUS_MIX)
    if unknown:
        raise ValueError(f"no such kind of example: {sorted(unknown)}; there are {sorted(CORPUS_MIX)}")
    rng = Random(f"corpus {seed}")
    kinds = rng.choices(list(mix), weights=list(mix.values()), k=n)
    return [make_solution_example(rng, mistake_rate) if kind == "solution" else _MAKERS[kind](rng) for kind in kinds]
