"""Begin the reconstruction with the wrong rollout's own tokens (`tapo.prefix: prefilled`).

The policy is asked in two requests. The first ends with the analysis, which names the wrong step. The prompt of the
second is that of the first, the analysis, the opening tag and the wrong response up to and including that step:

    synthesis prompt                                     the first prompt
    <analysis>a: 47+38=75 is wrong, ...</analysis>       decoded
    <reconstruction>a: 47+38=75                          given: tag and prefix
    Wait, I forgot the carry: ...</reconstruction>       decoded

So the prefix is token-exact, whatever the policy's skill in copying, and is not decoded. The whole answer is parsed,
anchored and graded as one that the policy copied.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from nemo_tapo.algorithms.answer_parts import parse_answer
from nemo_tapo.algorithms.reasoning_steps import find_named_step
from nemo_tapo.algorithms.reflection import encode_as_sampled
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.types import Completion, Request, Rollout

END_OF_ANALYSIS, OPENING, END = "</analysis>", "\n<reconstruction>", "</reconstruction>"


@dataclass(frozen=True)
class Answer:
    """What a policy answered to a synthesis prompt, in one request or in two."""

    completion: Completion
    decoded_tokens: int  # of the completion, those that the engine decoded


async def answer_with_prefix(
    wrong: Rollout,
    request: Request,
    continuation_seed: int,
    generate: Callable[[Request], Awaitable[Completion]],
    tokenizer: Tokenizer,
    error_quote: str,
) -> Answer:
    """Ask for the analysis, then for what follows the prefix. `request.max_tokens` limits the whole answer.

    If the analysis names no step of the wrong response, it is the whole answer.
    """
    first = await generate(replace(request, stop=END_OF_ANALYSIS))
    opened = open_reconstruction(first, wrong, tokenizer, error_quote)
    decoded, left = len(first.token_ids), request.max_tokens - len(opened)
    if not opened:
        return Answer(first, decoded)
    if left < 1:
        return Answer(Completion(opened, tokenizer.decode(opened), truncated=True), decoded)
    prompt_ids = (*request.prompt_ids, *opened)
    second = await generate(replace(request, prompt_ids=prompt_ids, seed=continuation_seed, max_tokens=left, stop=END))
    ids = (*opened, *second.token_ids)
    if not second.truncated and ids[-1] != tokenizer.eos_id:
        ids = (*ids, tokenizer.eos_id)  # it ends here, so that it can serve as an example of a whole answer
    return Answer(Completion(ids, tokenizer.decode(ids), second.truncated), decoded + len(second.token_ids))


def open_reconstruction(first: Completion, wrong: Rollout, tokenizer: Tokenizer, error_quote: str) -> tuple[int, ...]:
    """Return the ids of the answer so far: the analysis as it was sampled, the opening tag, and the kept prefix.

    Returns no ids if `first` has no whole analysis, ended by the tag that it stops at, or if that names no step of the
    wrong response.
    """
    if END_OF_ANALYSIS not in first.text:
        return ()
    analysis = parse_answer(first.text, first.truncated, ()).analysis
    error_end = find_named_step(analysis, wrong.text, error_quote)
    if error_end is None:
        return ()
    begun = first.text[: first.text.rindex(END_OF_ANALYSIS) + len(END_OF_ANALYSIS)]
    kept = wrong.text[: find_prefix_end(wrong.text, error_end)]
    analysis_ids, *_ = encode_as_sampled(begun + OPENING, len(begun), first.token_ids, tokenizer)
    prefix_ids, *_ = encode_as_sampled(kept, len(kept), wrong.completion.token_ids, tokenizer)
    return (*analysis_ids, *prefix_ids)


def find_prefix_end(wrong: str, error_end: int) -> int:
    r"""Return where the prefix ends that is kept through the step that ends at `error_end`: its line end belongs to it.

    >>> find_prefix_end("47+38=75\n75-19=56", 8), find_prefix_end("That is 6. So 6.", 10)
    (9, 10)
    """
    rest = wrong[error_end:]
    space = rest[: len(rest) - len(rest.lstrip())]
    return error_end + (len(space) if "\n" in space else 0)
