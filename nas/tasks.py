"""Task accuracy: which choice of an item a model finds most likely, counted as lm-evaluation-harness does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.errors import InputError
from data.tasks import Item

ENCODED_TOGETHER = 1024
"""Pairs whose tokens are held as Python lists at a time."""


@dataclass(frozen=True)
class TaskScores:
    """What a model does on `n` items, fractions of them: larger is better.

    `acc` counts the items whose right choice has the largest log-likelihood (summed over its tokens),
    `acc_norm` those where it has the largest one per character of the choice, None for tasks of which
    lm-evaluation-harness does not report it. Each has the standard error of its mean, NaN for one item.
    """

    n: int
    acc: float
    acc_stderr: float
    acc_norm: float | None
    acc_norm_stderr: float | None

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """Token ids (n,), of which the last `scored` are predicted from those before them."""

    tokens: NDArray[np.int32]
    scored: int


def score_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> TaskScores:
    """Accuracy on the items, on the device that the model is on.

    `progress` is told how many log-likelihoods are done. Raises as `log_likelihoods` does.
    """
    pairs = [pair for item in items for pair in zip(item.contexts, item.continuations, strict=True)]
    found = log_likelihoods(model, tokenizer, pairs, batch_size=batch_size, progress=progress)
    return accuracy(items, found)


def accuracy(items: Sequence[Item], log_likelihoods: NDArray[np.float64]) -> TaskScores:
    """Scores from the log-likelihoods of all choices of all items, one after another; the first of equal
    ones is taken. acc_norm is None unless every item has lengths. Raises `InputError` without items."""
    if not items:
        raise InputError("there are 0 items to score: give one or more")
    ends = np.cumsum([len(item.continuations) for item in items])
    each = list(zip(items, np.split(log_likelihoods, ends[:-1]), strict=True))
    acc = [float(np.argmax(found) == item.gold) for item, found in each]
    norm = [
        float(np.argmax(found / np.array(item.lengths)) == item.gold)
        for item, found in each
        if item.lengths is not None
    ]
    normalised = len(norm) == len(items)
    return TaskScores(
        n=len(items),
        acc=float(np.mean(acc)),
        acc_stderr=standard_error(acc),
        acc_norm=float(np.mean(norm)) if normalised else None,
        acc_norm_stderr=standard_error(norm) if normalised else None,
    )


def standard_error(values: Sequence[float]) -> float:
    """Of the mean: the sample's standard deviation (n - 1) over the root of n; NaN for one value."""
    n = len(values)
    return math.nan if n < 2 else float(np.std(values, ddof=1)) / math.sqrt(n)


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.float64]:
    """log p(continuation | context) in nats of each pair (context, continuation), float64 (n,).

    The longest come first; a batch is padded on the right, which no token before it can see. A sequence that
    another begins with shares its row. Logits are made for the positions that are asked for and normalised
    in float32. Raises `InputError` for a pair without tokens to predict or with more of them than the model
    has positions.
    """
    longest = int(model.config.max_position_embeddings)
    requests = [
        request
        for at in range(0, len(pairs), ENCODED_TOGETHER)
        for request in encode_pairs(tokenizer, pairs[at : at + ENCODED_TOGETHER], longest)
    ]
    rows = _rows([request.tokens[:-1] for request in requests])
    found = np.empty(len(pairs))
    for at in range(0, len(rows), batch_size):
        batch = [[requests[index] for index in row] for row in rows[at : at + batch_size]]
        indices = [index for row in rows[at : at + batch_size] for index in row]
        found[indices] = batch_sums(model, batch)
        progress(len(indices))
    return found


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], longest: int
) -> Iterator[Request]:
    """The tokens of each pair, as lm-evaluation-harness (0.4.13) divides them.

    Spaces at the end of a context go to the continuation. The context is encoded alone and with its
    continuation, and what the second has beyond the first's length is the continuation's. Special tokens are
    those that the tokenizer adds, none if the text begins with the first of them. An empty context is the
    tokenizer's beginning or, without one, end of text. What exceeds `longest` inputs is cut on the left.
    """
    moved = [_spaces_moved(*pair) for pair in pairs]
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prefix = None if first is None else str(tokenizer.decode(first))
    texts = dict.fromkeys(text for context, whole in moved if context for text in (context, whole))
    special = {text: not (prefix and text.startswith(prefix)) for text in texts}
    special |= {whole: False for context, whole in moved if not context}
    ids = _encode(tokenizer, special)
    for (context, whole), (_, continuation) in zip(moved, pairs, strict=True):
        if context:
            known, scored = ids[context], ids[whole][len(ids[context]) :]
        elif first is None:
            raise InputError("a context is empty, and the tokenizer has no token to begin a text with")
        else:
            known, scored = [first], ids[whole][ids[whole][:1] == [first] :]
        if not 0 < len(scored) <= longest:
            raise InputError(
                f"the choice {continuation[:40]!r} has {len(scored)} tokens of its own, and the model's "
                f"{longest} positions score 1 to {longest}: leave the item out"
            )
        yield Request(np.array([*known, *scored][-(longest + 1) :], dtype=np.int32), len(scored))


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """The context without spaces at its end, and the whole text."""
    return context.rstrip(), context + continuation


def _encode(tokenizer: PreTrainedTokenizerBase, special: dict[str, bool]) -> dict[str, list[int]]:
    """Ids of each text, with the tokenizer's special tokens where its value says so."""
    ids: dict[str, list[int]] = {}
    for wanted in (True, False):
        texts = [text for text, value in special.items() if value == wanted]
        if texts:
            encoded = tokenizer(texts, add_special_tokens=wanted, verbose=False)["input_ids"]
            ids.update(zip(texts, encoded, strict=True))
    return ids


def _rows(inputs: Sequence[NDArray[np.int32]]) -> list[list[int]]:
    """Indices of the inputs, those together that begin one another, the longest of a row and the longest
    rows first."""
    keys = [tokens.tobytes() for tokens in inputs]
    rows: list[list[int]] = []
    for index in sorted(range(len(keys)), key=keys.__getitem__, reverse=True):
        if rows and keys[rows[-1][0]].startswith(keys[index]):
            rows[-1].append(index)
        else:
            rows.append([index])
    return sorted(rows, key=lambda row: len(keys[row[0]]), reverse=True)


def batch_sums(model: PreTrainedModel, rows: Sequence[Sequence[Request]]) -> NDArray[np.float64]:
    """Log-likelihoods of the requests of all rows, one after another; the first of a row is its input."""
    inputs = np.zeros((len(rows), max(len(row[0].tokens) for row in rows) - 1), dtype=np.int64)
    for place, row in enumerate(rows):
        inputs[place, : len(row[0].tokens) - 1] = row[0].tokens[:-1]
    requests = [request for row in rows for request in row]
    starts = [len(request.tokens) - 1 - request.scored for request in requests]
    first, scored = min(starts), [request.scored for request in requests]
    # By scored token: its row, the position that predicts it, itself, and the request that it belongs to.
    row_of = np.repeat([place for place, row in enumerate(rows) for _ in row], scored)
    position = np.concatenate([np.arange(at, at + n) for at, n in zip(starts, scored, strict=True)]) - first
    target = np.concatenate([request.tokens[-request.scored :] for request in requests]).astype(np.int64)
    owner = np.repeat(np.arange(len(requests)), scored)

    def there(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(model.device)

    logits = model(there(inputs), use_cache=False, logits_to_keep=inputs.shape[1] - first).logits
    chosen = logits[there(row_of), there(position)].float().log_softmax(-1)
    named = chosen.gather(-1, there(target)[:, None])[:, 0].double().cpu()
    sums = torch.zeros(len(requests), dtype=torch.float64)
    return sums.index_add_(0, torch.from_numpy(owner), named).numpy()
