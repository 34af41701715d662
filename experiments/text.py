"""The text of a run, in windows: what it calibrates on, searches on, chooses on and reports on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.corpus import load_corpus
from data.errors import InputError
from data.windows import draw, encode, spread, spread_apart, windows


@dataclass(frozen=True)
class Text:
    """Windows (n, seq_len) of token ids: `calibration` and `training` of the training split, `pairs` and,
    none of these among them, `final` of the validation split, `test` of the test split.

    `name` and `source` (by split) say which corpus it is, `digests` which tokens the training and validation
    splits hold: sixteen hexadecimal digits each.
    """

    name: str
    source: Mapping[str, str]
    digests: Mapping[str, str]
    calibration: Tensor
    training: Tensor
    pairs: Tensor
    final: Tensor
    test: Tensor


def read_text(
    corpus: str,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    seq_len: int,
    rng: np.random.Generator,
    cache: Path,
    *,
    calibration: int,
    pairs: int,
    final: int,
    test: int,
    training: int = 0,
) -> Text:
    """As many windows of each kind as asked for, fewer where a split ends; `test` 0 takes all.

    Calibration and training windows are drawn at random, the others evenly spaced. Raises `InputError` for a
    corpus that cannot be read or is too short for one window, and for a tokenizer that gives ids beyond
    `vocabulary`.
    """
    found = load_corpus(corpus, tokenizer)
    tokens = {name: encode(tokenizer, found.split(name), cache) for name in ("train", "validation", "test")}
    largest = max(int(ids.max(initial=0)) for ids in tokens.values())
    if largest >= vocabulary:
        raise InputError(
            f"the parent's tokenizer gives the id {largest}, and its model ends at {vocabulary - 1}; "
            "give a parent with its own tokenizer"
        )
    split = {name: windows(ids, seq_len) for name, ids in tokens.items()}
    on_pairs, on_final = spread_apart(split["validation"], pairs, final)
    calibrated = draw(split["train"], min(calibration, len(split["train"])), rng)
    trained = draw(split["train"], min(training, len(split["train"])), rng) if training else calibrated[:0]
    return Text(
        name=found.name,
        source=found.source,
        digests={name: _digest(tokens[name]) for name in ("train", "validation")},
        calibration=calibrated,
        training=trained,
        pairs=on_pairs,
        final=on_final,
        test=spread(split["test"], min(test or len(split["test"]), len(split["test"]))),
    )


def calibrated_on(text: Text, parent_digest: str, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """All that statistics of a parent on the calibration windows depend on."""
    return {
        "parent": parent_digest,
        "tokens": text.digests,
        "seq_len": text.calibration.shape[1],
        "calibration_windows": len(text.calibration),
        "seed": seed,
        "dtype": str(dtype),
    }


def _digest(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes()).hexdigest()[:16]
