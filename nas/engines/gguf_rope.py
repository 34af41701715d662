"""Rotary frequencies in GGUF: the base, what scales them, and the two orders of a head's channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from nas.engines.checkpoint import factor_of, number_of

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """The base of the frequencies, a factor that all are divided by, and one of each of their own
    (head_dim / 2,), where they have such."""

    base: float
    linear: float | None = None
    factors: Array | None = None


def rope_of(config: Mapping[str, Any], head_dim: int) -> Rope:
    """What a configuration says of its frequencies, in the words of transformers 4 or 5.

    Raises `InputError` for a scaling that has no exact counterpart: `dynamic` and `longrope` change with the
    length of the text, and `yarn` scales the attention too, by rules that differ between the two.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        raise InputError(
            f"the checkpoint's config.json says of rotary frequencies {stated!r}; fetch it again"
        )
    kind = stated.get("rope_type") or stated.get("type") or "default"
    theta = stated.get("rope_theta") or config.get("rope_theta") or 10000.0
    base = factor_of({"rope_theta": theta}, "rope_theta")
    if (stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise InputError("only a part of each head turns with the position; llama.cpp turns whole heads here")
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, linear=factor_of(stated, "factor"))
    if kind == "llama3":
        return Rope(base, factors=_llama3(stated, base, head_dim))
    raise InputError(
        f"the rotary frequencies are scaled by {kind!r}, which GGUF cannot say exactly; default, linear and "
        "llama3 can be exported"
    )


def _llama3(stated: Mapping[str, Any], base: float, head_dim: int) -> Array:
    """What Llama 3.1 divides each frequency by: 1 for short waves, `factor` for long ones, between by how
    often a wave fits into the context trained on (Llama 3.1's reference code)."""
    factor, low, high = (
        factor_of(stated, name) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    turns = base ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    turns *= number_of(stated, "original_max_position_embeddings")
    part = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - part) / factor + part)).astype(np.float32)


def interleaved(rows: Array, heads: int) -> Array:
    """Rows (heads * head_dim, ...) of queries or keys with both channels of every rotary pair side by side.

    So llama.cpp's `llama` and `deci` have them; transformers has all first ones before all second ones.
    """
    grid = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(rows.shape)
