"""Tell whether a model sees that an attempt failed, on Countdown: tools/attempts.py RUN_FOLDER[/evaluation/NAME]...

Of each folder's last evaluation: whole attempts, how often their verdicts are true, how often a turn ("Wait, ...")
follows one that failed and one that reached the target, and their difference, the detection. And by the number of turns
in a response: how many, how many of them right.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nemo_tapo.evaluation.sample_store import get_evaluation_folder
from nemo_tapo.judge.responses import get_problem, load_questions, read_config, read_responses
from nemo_tapo.tasks.countdown import TURN, list_attempts, parse_question

MOST = 4  # attempts told one by one


@dataclass
class Attempts:
    """Counts over responses."""

    attempts: Counter[tuple[bool, bool]] = field(default_factory=Counter)  # {(reached, a turn follows): attempts}
    verdicts: Counter[tuple[bool, bool]] = field(default_factory=Counter)  # {(reached, true): verdicts}
    turns: Counter[int] = field(default_factory=Counter)  # {turns in a response: responses}
    right: Counter[int] = field(default_factory=Counter)  # {turns in a response: right responses}

    def add(self, question: str, text: str, correct: bool) -> None:
        """Count one response."""
        found = list_attempts(parse_question(question), text)
        self.attempts.update((a.reached, a.turned) for a in found)
        self.verdicts.update((a.reached, a.seen) for a in found if a.seen is not None)
        turns = min(sum(line.startswith(TURN) for line in text.split("\n")), MOST)
        self.turns[turns] += 1
        self.right[turns] += correct

    def turned_share(self, reached: bool) -> float | None:
        """Return how often a turn follows an attempt that reached the target, or one that did not."""
        whole = self.attempts[reached, True] + self.attempts[reached, False]
        return self.attempts[reached, True] / whole if whole else None


def count_attempts(folder: Path) -> Attempts:
    """Count over one evaluation. Raises ValueError if there is none, or if it is of another task."""
    if (folder / "evaluation").is_dir():
        names = [name for name in ("after", "before") if (folder / "evaluation" / name).is_dir()]
        folder = get_evaluation_folder(folder, names[0]) if names else folder
    cfg = read_config(folder)
    if cfg is None or cfg.task.name != "countdown":
        raise ValueError(f"{folder} is no evaluation of task.name = countdown.")
    answered = read_responses(folder)
    questions = load_questions(cfg, answered)
    found = Attempts()
    for sample in answered.samples:
        found.add(questions[get_problem(sample)][0], sample.text, sample.correct)
    return found


def describe(found: Attempts) -> str:
    """Return the counts as lines of text."""
    responses = sum(found.turns.values())
    failed, reached = found.turned_share(False), found.turned_share(True)
    lines = [f"{responses} responses, {sum(found.right.values()) / responses:.1%} right"]
    for name, share, is_reached in (("failed", failed, False), ("reached the target", reached, True)):
        whole = found.attempts[is_reached, True] + found.attempts[is_reached, False]
        true, false = found.verdicts[is_reached, True], found.verdicts[is_reached, False]
        lines.append(f"  attempts that {name}: {whole}")
        lines[-1] += f", verdicts true {true / (true + false):.1%}" if true + false else ""
        lines[-1] += "" if share is None else f", a turn follows {share:.1%}"
    if failed is not None and reached is not None:
        lines.append(f"  detection: {100 * (failed - reached):+.1f} points")
    for turns in sorted(found.turns):
        more = " or more" if turns == MOST else ""
        number, right = found.turns[turns], found.right[turns] / found.turns[turns]
        lines.append(f"  turns {turns}{more}: {number} ({number / responses:.1%}), right {right:.1%}")
    return "\n".join(lines)


def main(folders: list[str]) -> None:
    """Print the counts of every folder."""
    for name in folders:
        try:
            print(f"{name}: {describe(count_attempts(Path(name)))}")
        except ValueError as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
