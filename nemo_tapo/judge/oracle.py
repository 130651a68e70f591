"""Give the judge's labels for the generated arithmetic, exactly and without an endpoint.

There, a correction is a line `Wait, the carry was forgotten: a: 47+38=85` that repeats the step of the line before it.
"""

from __future__ import annotations

import re

from nemo_tapo.judge.verdict import Verdict
from nemo_tapo.tasks.arithmetic import PHRASES, Problem, diagnose, parse_question, verify_response

_CORRECTION = re.compile(r"Wait, ([^:]*): ")


def judge_response(question: str, response: str) -> Verdict:
    """Return the labels that prompt.py defines.

    reflection: the response contains "Wait,". correction: it has a line that corrects the line before it. located: the
    corrected line is wrong, and all lines before it are right or were put right. diagnosis: the correction names that
    line's kind of mistake. With several corrections, located and diagnosis are true if they are true of one of them.

    Raises ValueError for a question that is not generated arithmetic.
    """
    task, lines = parse_question(question), response.split("\n")
    corrections = [(i, match[1]) for i, line in enumerate(lines) if i and (match := _CORRECTION.match(line))]
    judged = [_judge_correction(task, lines[:i], phrase) for i, phrase in corrections]
    return Verdict(
        reflection="Wait," in response,
        correction=bool(corrections),
        located=any(located for located, _ in judged),
        diagnosis=any(diagnosis for _, diagnosis in judged),
        answer_right=verify_response(task.answer, response)[0] > 0,
        evidence=next(
            (lines[i] for i, _ in corrections), "no reflection" if "Wait," not in response else "no correction"
        ),
    )


def _judge_correction(task: Problem, before: list[str], phrase: str) -> tuple[bool, bool]:
    """Return (located, diagnosis) of a correction that follows the lines `before`."""
    wrong = diagnose(task, "\n".join(before))
    if wrong is None or wrong.line != len(before) - 1:
        return False, False
    return True, phrase in PHRASES[wrong.kind]
