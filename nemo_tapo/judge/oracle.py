"""Give the judge's labels for the generated tasks, exactly and without an endpoint.

On arithmetic, a correction is a line `Wait, the carry was forgotten: a: 47+38=85` that repeats the step of the line
before it; on Countdown a line `Wait, 55 is not 16.` that takes the attempt before it back.
"""

from __future__ import annotations

import re

from nemo_tapo.judge.verdict import Verdict
from nemo_tapo.tasks import countdown
from nemo_tapo.tasks.arithmetic import PHRASES, Problem, diagnose, parse_question, verify_response

_CORRECTION = re.compile(r"Wait, ([^:]*): ")


def judge_response(question: str, response: str) -> Verdict:
    """Return the labels that prompt.py defines.

    reflection: the response contains "Wait,". correction: it has a line that corrects the line before it. located: the
    corrected line is wrong, and all lines before it are right or were put right. diagnosis: the correction names that
    line's kind of mistake. With several corrections, located and diagnosis are true if they are true of one of them.

    Raises ValueError for a question of another task.
    """
    if question.startswith("Numbers:"):
        return _judge_countdown(countdown.parse_question(question), response)
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


def _judge_countdown(problem: countdown.Problem, response: str) -> Verdict:
    """Return the labels: located if a turn follows a mistake at once, diagnosis if it also says what the mistake is."""
    lines = response.split("\n")
    turns = [i for i, line in enumerate(lines) if i and line.startswith(countdown.TURN)]
    found = {i: countdown.diagnose(problem, "\n".join(lines[:i])) for i in turns}
    located = {i: each for i, each in found.items() if each is not None and each.line == i - 1}
    return Verdict(
        reflection="Wait," in response,
        correction=bool(turns),
        located=bool(located),
        diagnosis=any(lines[i] == countdown.TURN + each.sentence for i, each in located.items()),
        answer_right=countdown.verify_response(problem, response)[0] > 0,
        evidence=lines[turns[0]] if turns else "no reflection" if "Wait," not in response else "no correction",
    )


def _judge_correction(task: Problem, before: list[str], phrase: str) -> tuple[bool, bool]:
    """Return (located, diagnosis) of a correction that follows the lines `before`."""
    wrong = diagnose(task, "\n".join(before))
    if wrong is None or wrong.line != len(before) - 1:
        return False, False
    return True, phrase in PHRASES[wrong.kind]
