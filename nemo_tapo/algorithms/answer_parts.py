"""Take the answer to a synthesis prompt apart: analysis and reconstruction, without thinking and layout."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_tapo.utils.token_text import common_prefix_length


@dataclass(frozen=True)
class ParsedAnswer:
    """The two parts of a synthesis answer, or the reason why it is dropped."""

    analysis: str = ""
    reconstruction: str = ""
    dropped: str | None = None


_BLOCK = r"<{tag}>(.*?)</{tag}>"


def parse_answer(text: str, truncated: bool, leak_words: Sequence[str], own_text: str = "") -> ParsedAnswer:
    """Split an answer to the synthesis prompt into analysis and reconstruction.

    There must be exactly one well-formed reconstruction, after the analysis, not empty, not cut off, without the tags
    and without words that betray the privileged source. What it repeats of `own_text`, the wrong response, betrays
    nothing and may contain such words ("the reference angle is 30 degrees"). Thinking before the answer is no part of
    it, and white space inside the tags is layout (`strip_layout`). Returns the first drop reason that applies, in the
    order of `reflection.DROP_REASONS`.

    >>> text = "<analysis>The carry.</analysis><reconstruction>47+38=75\\nWait: 85</reconstruction>"
    >>> parse_answer(text, truncated=False, leak_words=()).reconstruction
    '47+38=75\\nWait: 85'
    >>> parse_answer(text, truncated=True, leak_words=()).dropped
    'truncated'
    """
    if truncated:
        return ParsedAnswer(dropped="truncated")
    text = strip_thinking(text)
    analyses = list(re.finditer(_BLOCK.format(tag="analysis"), text, re.DOTALL))
    blocks = list(re.finditer(_BLOCK.format(tag="reconstruction"), text, re.DOTALL))
    analysis = _content(analyses[0]) if analyses else ""
    if len(analyses) != 1 or text.count("<analysis>") != 1:
        return ParsedAnswer(analysis, dropped="no_analysis")
    if not blocks:
        return ParsedAnswer(analysis, dropped="no_reconstruction")
    reconstruction = strip_layout(_content(blocks[0]), own_text)
    if len(blocks) > 1 or text.count("<reconstruction>") != 1 or text.count("</reconstruction>") != 1:
        return ParsedAnswer(analysis, reconstruction, "several_reconstructions")
    if blocks[0].start() < analyses[0].end():
        return ParsedAnswer(analysis, reconstruction, "wrong_order")
    if not reconstruction.strip():
        return ParsedAnswer(analysis, reconstruction, "empty")
    lowered = reconstruction.lower()
    added = lowered[common_prefix_length(reconstruction, own_text) :]
    if any(word.lower() in added for word in leak_words) or re.search(r"</?(analysis|reconstruction)", lowered):
        return ParsedAnswer(analysis, reconstruction, "leak")
    return ParsedAnswer(analysis, reconstruction)


def _content(block: re.Match[str]) -> str:
    return block.group(1).removeprefix("\n").removesuffix("\n")


def strip_thinking(text: str) -> str:
    """Take the thinking off that an answer begins with; a block that is never closed is all there is.

    The opening tag may be part of the prompt (some chat templates write it).

    >>> strip_thinking("<think>I write <analysis> first.</think>Now: ")
    'Now: '
    >>> strip_thinking("<think>plan: <analysis>a</analysis>")
    ''
    """
    head, closed, rest = text.partition("</think>")
    opened = head.lstrip().startswith("<think>")
    if closed and (opened or "<think>" not in head):
        return rest
    return "" if opened else text


def strip_layout(reconstruction: str, own_text: str) -> str:
    r"""Take layout off a reconstruction, so that it begins as the wrong response, `own_text`, does.

    Layout are line ends as \r\n where the response has none, white space at both ends, and an indentation that all
    lines share.

    >>> strip_layout("\n\n  2+3=6\r\n  Wait, 2+3=5\n", "2+3=6")
    '2+3=6\nWait, 2+3=5'
    """
    if "\r" not in own_text:
        reconstruction = reconstruction.replace("\r\n", "\n")
    candidates = [textwrap.dedent(reconstruction.strip("\n")).strip(), reconstruction.strip()]
    return max(candidates, key=lambda text: common_prefix_length(text, own_text))
