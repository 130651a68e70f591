"""Write synthesis prompts, and anchor what their answers keep of a wrong response (section 3.3.2, Figure 2).

Text and token ids in, a `Construction` out; no engine here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_tapo.algorithms.answer_parts import parse_answer
from nemo_tapo.algorithms.reasoning_steps import (
    count_kept_steps,
    find_last_step,
    find_named_step,
    find_step_ends,
    keeps_through,
    read_quote,
)
from nemo_tapo.config.sections import PrefixLoss
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.tasks.prompts import ERROR_QUOTE
from nemo_tapo.types import Completion, Construction, Pair
from nemo_tapo.utils.token_text import common_prefix_length, count_tokens_within

# Why a pair gives no training row. Counted each step; parsed + dropped = pairs.
DROP_REASONS = (
    "prompt_too_long",  # the synthesis prompt and its answer do not fit the context; never truncated
    "truncated",  # the answer was cut off by the length limit
    "no_analysis",  # no well-formed <analysis>
    "error_unknown",  # tapo.construct: continue_from_prefix, and the task does not tell where the wrong step is
    "no_quote",  # tapo.prefix: prefilled, and the analysis names no wrong step, or several
    "quote_not_found",  # the step that it names is not in the wrong response exactly once
    "no_reconstruction",  # no well-formed <reconstruction>
    "several_reconstructions",
    "wrong_order",  # the reconstruction comes before the analysis
    "empty",  # an empty reconstruction
    "leak",  # it mentions the privileged source, or contains the tags themselves
    "too_little_kept",  # less of the wrong response preserved than tapo.min_kept_share
    "error_not_kept",  # it changes the wrong response before the end of its first wrong step, or keeps no whole step
    "row_too_long",  # query and reconstruction do not fit model.max_length
    "run_ended",  # chosen in the last step of a run whose constructions are made a step later (pipeline: deferred)
)
UNGRADED = "ungraded"  # one more, counted only where it happens: a reward function gave the construction no reward

LEADS = ("\n", ".", "a")  # what a text is encoded behind: one of them that does not melt into one token with it


@dataclass(frozen=True)
class ReflectionRules:
    """What a synthesis answer must satisfy (`tapo.*`, `model.max_length`).

    >>> ReflectionRules(min_kept_share=0.5).leak_words
    ('reference', 'correct solution')
    """

    leak_words: tuple[str, ...] = ("reference", "correct solution")
    min_kept_share: float = 0.0
    keep_error: bool = True  # the wrong response must be kept through its first wrong step
    full_reconstruction: bool = False  # Table 3: nothing is anchored
    error_quote: str = ERROR_QUOTE  # how an analysis names the wrong step (`Task.error_quote`)
    must_quote: bool = False  # the analysis must name it (tapo.prefix: prefilled)
    max_row_tokens: int = 1 << 30


def render_prompt(template: str, pair: Pair) -> str:
    """Write the synthesis prompt of a pair. The template has {question}, {wrong} and {reference}.

    Raises ValueError if one of the three is missing or another name stands in braces.
    """
    values = {
        "question": pair.wrong.query.question,
        "wrong": pair.wrong.text.strip("\n"),  # `make_construction` puts back what comes before it
        "reference": pair.right.text.strip("\n"),
    }
    missing = [name for name in values if "{" + name + "}" not in template]
    if missing:
        raise ValueError(f"tapo.prompt has no {{{missing[0]}}}; it needs {{question}}, {{wrong}} and {{reference}}.")
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"tapo.prompt has a brace that is none of {{question}}, {{wrong}}, {{reference}} ({error}); "
            "write a literal brace twice: {{ }}."
        ) from None


def anchor_prefix(
    reconstruction: str, wrong_text: str, wrong_ids: Sequence[int], tokenizer: Tokenizer
) -> tuple[tuple[int, ...], int, int]:
    """Anchor the kept prefix: return (response ids with EOS, kept tokens, kept characters).

    The common prefix is found on characters. As many of the wrong rollout's own token ids as lie wholly within it
    are kept, so the prefix is token-exact on policy; what follows is encoded anew.
    """
    shared = common_prefix_length(reconstruction, wrong_text)
    ids, kept, chars = encode_as_sampled(reconstruction, shared, wrong_ids, tokenizer)
    return (*ids, tokenizer.eos_id), kept, chars


def encode_as_sampled(
    text: str, shared: int, sampled: Sequence[int], tokenizer: Tokenizer
) -> tuple[tuple[int, ...], int, int]:
    """Return (ids of `text`, how many of them are `sampled` ones, the characters of these).

    The sampled ids that lie wholly within the first `shared` characters are kept, EOS left out; the rest is encoded.
    """
    kept = cut_sampled(sampled, text[:shared], tokenizer)
    chars = len(tokenizer.decode(kept))
    return (*kept, *encode_behind(kept, text, chars, tokenizer)), len(kept), chars


def encode_behind(kept: Sequence[int], text: str, chars: int, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of text[chars:], which goes on behind the ids `kept`: their text is text[:chars].

    Some tokenizers (Llama 2's, Mistral's) put a blank before whatever they encode. Inside a row that would be a blank
    which nobody wrote and no verifier saw. There the text is encoded behind a lead, whose ids are taken off again.
    """
    rest = text[chars:]
    ids = tuple(tokenizer.encode(rest))
    if not kept or tokenizer.decode((*kept, *ids)) == text:
        return ids
    for lead in LEADS:
        head, whole = tokenizer.encode(lead), tokenizer.encode(lead + rest)
        behind = tuple(whole[len(head) :])
        if whole[: len(head)] == head and tokenizer.decode((*kept, *behind)) == text:
            return behind
    return ids


def cut_sampled(sampled: Sequence[int], shared: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the first `sampled` ids, EOS left out, that lie wholly within a text that theirs begins with."""
    own = [i for i in sampled if i != tokenizer.eos_id]
    return tuple(own[: count_tokens_within(own, shared, tokenizer.decode)])


def make_construction(
    pair: Pair, completion: Completion, tokenizer: Tokenizer, rules: ReflectionRules, error_end: int | None = None
) -> Construction:
    """Make an ungraded Construction, or a dropped one, of the answer to a pair's synthesis prompt.

    `error_end`: where the first wrong step of the wrong response ends, in characters, if that is known. Otherwise a
    step that the analysis names (`rules.error_quote`) counts, and one whole step has to be kept in any case: a row
    whose mistake is not the policy's own would teach it to make mistakes up.
    """
    wrong = pair.wrong.text
    lead = wrong[: len(wrong) - len(wrong.lstrip())]
    parsed = parse_answer(completion.text, completion.truncated, rules.leak_words, wrong[len(lead) :])
    if rules.must_quote and parsed.dropped in (None, "no_reconstruction"):
        parsed = replace(parsed, dropped=find_quote_fault(parsed.analysis, wrong, rules.error_quote) or parsed.dropped)
    if parsed.dropped:
        return Construction(pair, parsed.dropped, completion.text, parsed.analysis, parsed.reconstruction)
    if rules.full_reconstruction:
        text, shared = parsed.reconstruction, 0
        ids, kept, chars = (*tokenizer.encode(text), tokenizer.eos_id), 0, 0
    else:
        text = lead + parsed.reconstruction
        shared = common_prefix_length(text, wrong)
        ids, kept, chars = anchor_prefix(text, wrong, pair.wrong.completion.token_ids, tokenizer)
    made = Construction(
        pair,
        None,
        raw=completion.text,
        analysis=parsed.analysis,
        reconstruction=text,
        kept_chars=chars,
        kept_tokens=kept,
        kept_steps=count_kept_steps(text, wrong, shared),
        valid_tokens=count_tokens_before_last_step(text[:chars], ids[:kept], tokenizer),
        turn_tokens=count_turn_tokens(text[chars:], ids[kept:], tokenizer),
        kept_share=chars / max(len(wrong), 1),
        response_ids=ids,
    )
    return replace(made, dropped=_find_drop_reason(made, shared, rules, error_end))


def find_quote_fault(analysis: str, wrong: str, error_quote: str) -> str | None:
    """Return why the wrong step that an analysis should name is not known; None if it is.

    >>> find_quote_fault("<error>1+1=3</error>", "1+1=2", ERROR_QUOTE)
    'quote_not_found'
    """
    if read_quote(analysis, error_quote) is None:
        return "no_quote"
    return "quote_not_found" if find_named_step(analysis, wrong, error_quote) is None else None


def _find_drop_reason(made: Construction, shared: int, rules: ReflectionRules, error_end: int | None) -> str | None:
    """Return why a construction that parsed gives no row; None if it gives one."""
    wrong = made.pair.wrong
    if not rules.full_reconstruction:
        if made.kept_share < rules.min_kept_share:
            return "too_little_kept"
        if error_end is None:
            error_end = find_named_step(made.analysis, wrong.text, rules.error_quote)
        kept = error_end is None or keeps_through(made.reconstruction, shared, error_end)
        if rules.keep_error and not (kept and made.kept_steps):
            return "error_not_kept"
    if len(wrong.query.prompt_ids) + len(made.response_ids) > rules.max_row_tokens:
        return "row_too_long"
    return None


def count_tokens_before_last_step(kept: str, ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Count the `ids`, whose text is `kept`, that lie wholly before its last step."""
    return count_tokens_within(ids, kept[: find_last_step(kept)], tokenizer.decode)


def count_turn_tokens(added: str, ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Count the `ids`, whose text is `added` and an EOS, that make up its first step: at least one."""
    ends = find_step_ends(added)
    return max(1, count_tokens_within(ids, added[: ends[0]] if ends else "", tokenizer.decode))


def count_tokens_without_loss(construction: Construction, prefix_loss: PrefixLoss) -> tuple[int, int]:
    """Count the first and the last tokens of a construction that carry no loss, under `tapo.prefix_loss`.

    The paper's Eq. 8 sums over every token, the kept wrong prefix among them (`all`). `none` leaves the kept prefix
    out; `error_step_only` leaves out what stands before its last step, which holds the error; `turn_only` leaves out
    all but the step that turns, the first one after the prefix (arXiv 2505.24726).
    """
    kept = construction.kept_tokens
    if prefix_loss == "turn_only":
        return kept, len(construction.response_ids) - kept - construction.turn_tokens
    return {"all": 0, "none": kept, "error_step_only": construction.valid_tokens}[prefix_loss], 0
