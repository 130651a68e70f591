"""Take the answer to a synthesis prompt apart: analysis and reconstruction, without thinking and layout."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_tapo.algorithms.reasoning_steps import WITHOUT_BLANKS
from nemo_tapo.utils.thinking import begins_thinking, skip_thinking
from nemo_tapo.utils.token_text import common_prefix_length

_INVISIBLE = "\ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner
_QUOTES = ('""', "''", "``", "“”", "„“", "‘’", "«»", "「」", "『』")  # noqa: RUF001  typographic marks are meant


@dataclass(frozen=True)
class ParsedAnswer:
    """The two parts of a synthesis answer, or the reason why it is dropped."""

    analysis: str = ""
    reconstruction: str = ""
    dropped: str | None = None


_TAG = re.compile(r"<\s*(/\s*)?(analysis|reconstruction)\s*>", re.IGNORECASE)  # group 1: it closes
_ANALYSIS = re.compile(r"<\s*analysis\s*>", re.IGNORECASE)
_BEGUN_TAG = re.compile(r"<\s*(?:/\s*)?(?:analysis|reconstruction)", re.IGNORECASE)


@dataclass(frozen=True)
class _Tagged:
    """What stands between tags of one name, and how many of these there are."""

    blocks: list[tuple[int, int, str]]  # where each begins and ends, its tags included, and what is between them
    opening: int
    closing: int


def parse_answer(text: str, truncated: bool, leak_words: Sequence[str], own_text: str = "") -> ParsedAnswer:
    """Split an answer to the synthesis prompt into analysis and reconstruction.

    There must be exactly one well-formed reconstruction, after the analysis, not empty, not cut off, without the tags
    and without words that betray the privileged source. What it repeats of `own_text`, the wrong response, betrays
    nothing and may contain such words ("the reference angle is 30 degrees"). Thinking before the answer is no part of
    it, white space between the tags is layout (`strip_layout`), and a tag may be written `<Analysis >`. Returns the
    first drop reason that applies, in the order of `reflection.DROP_REASONS`. The time is linear in the text.

    >>> text = "<analysis>The carry.</analysis><reconstruction>47+38=75\\nWait: 85</reconstruction>"
    >>> parse_answer(text, truncated=False, leak_words=()).reconstruction
    '47+38=75\\nWait: 85'
    >>> parse_answer(text, truncated=True, leak_words=()).dropped
    'truncated'
    """
    if truncated:
        return ParsedAnswer(dropped="truncated")
    text = strip_thinking(text)
    analyses, parts = _find_blocks(text, "analysis"), _find_blocks(text, "reconstruction")
    analysis = analyses.blocks[0][2] if analyses.blocks else ""
    if len(analyses.blocks) != 1 or analyses.opening != 1:
        return ParsedAnswer(analysis, dropped="no_analysis")
    if not parts.blocks:
        return ParsedAnswer(analysis, dropped="no_reconstruction")
    reconstruction = strip_layout(parts.blocks[0][2], own_text)
    if (parts.opening, parts.closing) != (1, 1):
        return ParsedAnswer(analysis, reconstruction, "several_reconstructions")
    if parts.blocks[0][0] < analyses.blocks[0][1]:
        return ParsedAnswer(analysis, reconstruction, "wrong_order")
    if not reconstruction.strip():
        return ParsedAnswer(analysis, reconstruction, "empty")
    shared = common_prefix_length(reconstruction, own_text)
    if _BEGUN_TAG.search(reconstruction) or any(_holds(reconstruction, word, shared) for word in leak_words):
        return ParsedAnswer(analysis, reconstruction, "leak")
    return ParsedAnswer(analysis, reconstruction)


def _holds(text: str, words: str, start: int) -> bool:
    """Return True if a text has words, or an inflection of them, that do not end within its first `start` characters.

    Case does not matter, nor does what stands between two words instead of a blank: a line end, a hyphen, emphasis.
    A part of a longer word is none, save in scripts that put no blanks between words.

    >>> _holds("The Correct\\nsolutions", "correct solution", 0), _holds("my preference", "reference", 0)
    (True, False)
    """
    parts = words.split()
    if not parts:
        return False
    letter = rf"[^\W\d_{WITHOUT_BLANKS}]"
    before = rf"(?<!{letter})" if re.match(letter, parts[0]) else ""
    behind = rf"(?:e?s|e?d|ing)?(?!{letter})" if re.match(letter, parts[-1][-1]) else ""
    pattern = before + r"[\s_*-]+".join(map(re.escape, parts)) + behind
    return any(match.end() > start for match in re.finditer(pattern, text, re.IGNORECASE))


def _find_blocks(text: str, name: str) -> _Tagged:
    """Find what stands between an opening tag and the next closing one, in one pass: tags may be repeated endlessly.

    >>> _find_blocks("<a> <Analysis>the carry</analysis > </analysis>", "analysis")
    _Tagged(blocks=[(4, 35, 'the carry')], opening=1, closing=2)
    """
    tags = [tag for tag in _TAG.finditer(text) if tag[2].lower() == name]
    blocks: list[tuple[int, int, str]] = []
    opened: re.Match[str] | None = None
    for tag in tags:
        if not tag[1]:
            opened = opened or tag
        elif opened:
            content = text[opened.end() : tag.start()].removeprefix("\n").removesuffix("\n")
            blocks.append((opened.start(), tag.end(), content))
            opened = None
    closing = sum(bool(tag[1]) for tag in tags)
    return _Tagged(blocks, len(tags) - closing, closing)


def strip_thinking(text: str) -> str:
    """Take the thinking off that an answer begins with; a block that is never closed is all there is.

    The opening tag may be part of the prompt (some chat templates write it).

    >>> strip_thinking("<think>I write <analysis> first.</think>Now: ")
    'Now: '
    >>> strip_thinking("<think>plan: <analysis>a</analysis>")
    ''
    """
    rest = skip_thinking(text, _ANALYSIS)
    return "" if begins_thinking(rest) else rest


def strip_layout(reconstruction: str, own_text: str) -> str:
    r"""Take layout off a reconstruction, so that it begins as the wrong response, `own_text`, does.

    Layout are white space and invisible characters at both ends, an indentation that all lines share, a code fence or
    a pair of quotation marks around the whole, and line ends: they become those of the response.

    >>> strip_layout("\n\n  2+3=6\r\n  Wait, 2+3=5\n", "2+3=6")
    '2+3=6\nWait, 2+3=5'
    >>> strip_layout("```text\n2+3=6\n5\n```", "2+3=6\r\n6")
    '2+3=6\r\n5'
    """
    own = own_text.replace("\r\n", "\n")
    candidates = []
    for text in _list_contents(reconstruction.replace("\r\n", "\n")):
        candidates += [textwrap.dedent(text.strip("\n")).strip(), text.strip(), _strip_ends(text)]
    best = max(candidates, key=lambda text: common_prefix_length(text, own))
    return _write_line_ends(best, own_text, common_prefix_length(best, own))


def _strip_ends(text: str) -> str:
    """Return a text without white space and invisible characters at its ends."""
    return text.strip().strip(_INVISIBLE).strip()


def _list_contents(text: str) -> list[str]:
    """Return a text and what may be its content: without a fence, with and without its first line, or without quotes.

    >>> _list_contents("“47”")
    ['“47”', '47']
    """
    bare, contents = _strip_ends(text), [text]
    for fence in ("```", "~~~"):
        if bare.startswith(fence) and bare.endswith(fence):
            inner = bare.strip(fence[0])
            contents += [inner, inner.partition("\n")[2]]  # the name of a language may follow the fence
    contents += [bare[1:-1] for pair in _QUOTES if bare.startswith(pair[0]) and bare.endswith(pair[1])]
    return contents


def _write_line_ends(text: str, own_text: str, shared: int) -> str:
    r"""Write a text with the line ends of the wrong response, from which it has its first `shared` characters.

    Behind these, line ends are those that most lines of the response have.

    >>> _write_line_ends("1\n2\n3", "1\n2\r\n4\r\n5", 4)
    '1\n2\r\n3'
    """
    end = shared
    for line_end in re.finditer("\r\n", own_text):
        if line_end.start() >= end:
            break
        end += 1
    usual = "\r\n" if 2 * own_text.count("\r\n") > own_text.count("\n") else "\n"
    return own_text[:end] + text[shared:].replace("\n", usual)
