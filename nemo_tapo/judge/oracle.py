"""The judge's labels for the generated arithmetic, exactly and without an endpoint.

There a correction is a line `Wait, the carry was forgotten: a: 47+38=85` that does the line before it again.
"""

from __future__ import annotations

import re

from nemo_tapo.judge.verdict import Verdict
from nemo_tapo.tasks.arithmetic import PHRASES, Problem, diagnose, parse_question, verify

_TURN = re.compile(r"Wait, ([^:]*): ")


def verdict(question: str, response: str) -> Verdict:
    """The labels of prompt.py.

    reflection: a "Wait," anywhere. correction: a turn that does a line again. located: the line is wrong and all
    before it are right, or were put right. diagnosis: the turn names that line's kind of mistake. With several turns,
    located and diagnosis are true if one of them is such.

    Raises ValueError for a question that is no generated arithmetic.
    """
    task, lines = parse_question(question), response.split("\n")
    turns = [(i, match[1]) for i, line in enumerate(lines) if i and (match := _TURN.match(line))]
    found = [_judge_turn(task, lines[:i], phrase) for i, phrase in turns]
    return Verdict(
        reflection="Wait," in response,
        correction=bool(turns),
        located=any(located for located, _ in found),
        diagnosis=any(diagnosis for _, diagnosis in found),
        answer_right=verify(task.answer, response)[0] > 0,
        evidence=next((lines[i] for i, _ in turns), "no reflection" if "Wait," not in response else "no correction"),
    )


def _judge_turn(task: Problem, before: list[str], phrase: str) -> tuple[bool, bool]:
    """(located, diagnosis) of a turn that follows the lines `before`."""
    wrong = diagnose(task, "\n".join(before))
    if wrong is None or wrong.line != len(before) - 1:
        return False, False
    return True, phrase in PHRASES[wrong.kind]
