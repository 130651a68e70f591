"""Turn rows into tensors: loss coefficients that hold every normaliser, padding, updates, micro-batches by length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nemo_tapo.config.sections import Weighting
from nemo_tapo.types import Batch, Kind, Row

EQUAL_WEIGHTS: dict[Kind, float] = dict.fromkeys(Kind, 1.0)


def compute_loss_coefficients(
    rows: Sequence[Row],
    term_weights: Mapping[Kind, float],
    token_mean: bool = False,
    weighting: Weighting = "rows",
) -> list[float]:
    """Return for each row the weight of each of its tokens, so that a plain sum over all tokens is the step's loss.

    The weight of a row's kind (lambda of Eq. 6 for constructed ones) is divided by N T, with T the row's own tokens,
    `masked_tokens` among them; or, with `token_mean`, by the number of tokens of N rows. Which N rows is `weighting`:

    - "rows": the original rows, whatever the kind. A constructed row weighs lambda rollouts (section 3.4: the rows are
      appended to the batch). Without any original row it is as under "terms".
    - "terms": the rows of the same kind, so that each term is a mean over its own rows (the letter of Eq. 6).

    In both, constructed rows leave the original rows' weights as they are. Rows without tokens weigh nothing.

    >>> original = Row("q/0", "q", Kind.ORIGINAL, (1,), (2, 3))
    >>> constructed = Row("q_reflected/0", "q_reflected", Kind.CONSTRUCTED, (1,), (2, 3, 4, 5))
    >>> weights = {Kind.ORIGINAL: 1.0, Kind.CONSTRUCTED: 0.5}
    >>> compute_loss_coefficients([original, original, constructed], weights)
    [0.25, 0.25, 0.0625]
    >>> compute_loss_coefficients([original, original, constructed], weights, weighting="terms")
    [0.25, 0.25, 0.125]
    """
    row_counts: Counter[Kind] = Counter()
    token_counts: Counter[Kind] = Counter()
    for row in rows:
        row_counts[row.kind] += 1
        token_counts[row.kind] += len(row.response_ids)
    by_original = weighting == "rows" and token_counts[Kind.ORIGINAL] > 0
    coefficients = []
    for row in rows:
        length = len(row.response_ids)
        counted = Kind.ORIGINAL if by_original else row.kind
        count = token_counts[counted] if token_mean else row_counts[counted] * length
        coefficients.append(term_weights[row.kind] / count if length else 0.0)
    return coefficients


def collate(
    rows: Sequence[Row],
    pad_id: int,
    term_weights: Mapping[Kind, float] = EQUAL_WEIGHTS,
    token_mean: bool = False,
    weighting: Weighting = "rows",
) -> Batch:
    """Make a Batch of rows, right-padded to the longest, in the order given; weights by `compute_loss_coefficients`.

    No rows at all (no construction was right, say) give one row that is in no loss: the update has gradient 0.

    >>> rows = [Row("q/0", "q", Kind.ORIGINAL, (1, 2), (3, 4)), Row("q/1", "q", Kind.ORIGINAL, (1,), (5,))]
    >>> batch = collate(rows, pad_id=0)
    >>> batch.input_ids.tolist(), batch.token_mask.tolist()
    ([[1, 2, 3, 4], [1, 5, 0, 0]], [[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    """
    if not rows:
        empty = collate([Row("nothing", "nothing", Kind.EXAMPLE, (pad_id,), (pad_id,))], pad_id)
        return replace(empty, sample_mask=torch.zeros(1))
    lengths = torch.tensor([row.length for row in rows])
    shape = (len(rows), int(lengths.max()))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    token_mask = torch.zeros(shape)
    for i, row in enumerate(rows):
        input_ids[i, : row.length] = torch.tensor(row.prompt_ids + row.response_ids, dtype=torch.long)
        token_mask[i, row.loss_columns] = 1.0
    kinds = {row.kind for row in rows}
    mixed = Kind.EXAMPLE in kinds and len(kinds) > 1
    coefficients = compute_loss_coefficients(rows, term_weights, token_mean, weighting)
    generation, known = _generation_logprobs(rows, shape)
    teacher_ids, teacher_lengths = _teacher_rows(rows, pad_id)
    return Batch(
        input_ids=input_ids,
        input_lengths=lengths,
        token_mask=token_mask,
        sample_mask=torch.ones(len(rows)),
        advantages=torch.tensor([row.advantage for row in rows], dtype=torch.float32),
        loss_coef=torch.tensor(coefficients, dtype=torch.float32),
        constructed=torch.tensor([row.kind is Kind.CONSTRUCTED for row in rows]),
        supervised=torch.tensor([row.kind is Kind.EXAMPLE for row in rows]) if mixed else None,
        generation_logprobs=generation,
        generation_mask=known,
        teacher_input_ids=teacher_ids,
        teacher_input_lengths=teacher_lengths,
    )


def _generation_logprobs(rows: Sequence[Row], shape: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
    if all(row.generation_logprobs is None for row in rows):
        return None, None
    values, known = torch.zeros(shape), torch.zeros(len(rows))
    for i, row in enumerate(rows):
        if row.generation_logprobs is not None:
            values[i, len(row.prompt_ids) : row.length] = torch.tensor(row.generation_logprobs)
            known[i] = 1.0
    return values, known


def _teacher_rows(rows: Sequence[Row], pad_id: int) -> tuple[Tensor | None, Tensor | None]:
    """Pad each response after its teacher's prompt; return ids and lengths, (None, None) where no row has a teacher."""
    texts = [row.teacher_prompt_ids + row.response_ids for row in rows if row.teacher_prompt_ids is not None]
    if not texts:
        return None, None
    assert len(texts) == len(rows), "either every row has a teacher or none"
    ids = torch.full((len(rows), max(map(len, texts))), pad_id, dtype=torch.long)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text, dtype=torch.long)
    return ids, torch.tensor([len(text) for text in texts])


def split_into_updates(rows: Sequence[Row], updates: int) -> list[list[Row]]:
    """Split a step's rows into `updates` runs of whole queries of about equal size.

    A step has always as many updates, for the learning rate's schedule counts them; one may be without rows.
    Queries with rollouts, and those that have only constructions of the step before (`pipeline: deferred`), are shared
    out separately: so every update has its part of both.

    >>> rows = [Row(f"{query}/0", query, Kind.ORIGINAL, (1,), (2,)) for query in "abc"]
    >>> [[row.uid for row in part] for part in split_into_updates(rows, 2)]
    [['a/0'], ['b/0', 'c/0']]
    """
    sampled = dict.fromkeys(row.query_uid for row in rows if row.kind is Kind.ORIGINAL)
    others = dict.fromkeys(row.query_uid for row in rows if row.query_uid not in sampled)
    parts = []
    for index in range(updates):
        mine = {
            query
            for queries in (list(sampled), list(others))
            for query in queries[index * len(queries) // updates : (index + 1) * len(queries) // updates]
        }
        parts.append([row for row in rows if row.query_uid in mine])
    return parts


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split row indices, longest first, so that rows x longest row <= max_tokens (one row may exceed it alone).

    Every index appears exactly once. Sorting by length keeps padding small; ties keep their order.

    >>> micro_batches([3, 9, 4], max_tokens=9)
    [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
