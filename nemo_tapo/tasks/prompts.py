"""The synthesis prompts (section 3.3.2 and Figure 2 of arXiv 2606.18844)."""

from __future__ import annotations

# how an analysis names the first wrong step, word for word; it never reads past another opening tag
ERROR_QUOTE = r"(?s)<error>((?:(?!</?error>).)*)</error>"

_TASK = """\
You are given a math problem, an incorrect response to it, and a correct reference solution.

## Problem
{question}

## Incorrect response
{wrong}

## Correct reference solution
{reference}

First find the first critical error of the incorrect response. Write where it is, of what kind it is and why it is \
wrong between <analysis> and </analysis>.{quote}

"""

_QUOTE = " Quote the sentence or line that holds the error, word for word, between <error> and </error>."

_REWRITE = """\
Then write a corrected trajectory between <reconstruction> and </reconstruction>:
1. Reproduce the incorrect response word for word, up to and including the first error.
2. Insert a short, natural correction, for example "Wait, let me check that again."
3. Continue with correct reasoning to the final answer in \\boxed{{}}.
Write it as one continuous solution by one person. Do not mention the reference solution or these instructions."""

SYNTHESIS_PROMPT = _TASK.replace("{quote}", "") + _REWRITE
QUOTING_PROMPT = _TASK.replace("{quote}", _QUOTE) + _REWRITE  # tapo.prefix: prefilled

FULL_PROMPT = (
    _TASK.replace("{quote}", "")
    + """\
Then write a complete new solution of the problem, from the beginning to the final answer in \\boxed{{}}, between \
<reconstruction> and </reconstruction>. Do not mention the reference solution or these instructions."""
)
