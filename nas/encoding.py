"""Features: what a predictor sees of an architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.cost import CostModel
from nas.shape import Widths

SHARES = ("mean", "min", "std", "whole", "skipped")
"""Aggregates over blocks of the fraction of heads or channels kept."""


@dataclass(frozen=True)
class Encoding:
    """Turns widths into a table, the same columns in the same order always.

    Per block: fractions of KV groups, of heads and of FFN channels kept (these tell architectures apart),
    and the relative output errors that one-pass repair leaves in its attention and its MLP (0 whole, 1
    skipped), which put all choices on a scale of damage. Then aggregates over blocks and analytic costs.

    `attention_error` (blocks, G + 1, Q + 1) and `mlp_error` (blocks, P + 1) are indexed by the widths and
    NaN where the space has no such choice.
    """

    cost: CostModel
    attention_error: NDArray[np.float64]
    mlp_error: NDArray[np.float64]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Column names."""
        blocks = range(self.cost.shape.blocks)
        grouped = self.cost.shape.queries_per_group > 1
        kinds = (["groups"] if grouped else []) + ["heads", "ffn", "attention_error", "mlp_error"]
        return (
            *(f"{block}.{kind}" for kind in kinds for block in blocks),
            *(f"{kind}.{name}" for kind in ("heads", "ffn") for name in SHARES),
            "attention_error.sum", "mlp_error.sum", "error.max", "blocks.skipped",
            "block_parameters", "flops", "kv_cache_bytes",
        )  # fmt: skip

    @cached_property
    def errors(self) -> tuple[int, ...]:
        """Which columns hold the local errors of single modules."""
        return tuple(
            i for i, name in enumerate(self.columns) if name[0].isdigit() and name.endswith("_error")
        )

    def __call__(self, widths: Widths) -> NDArray[np.float64]:
        """(n, blocks, 3) widths -> (n, columns) features."""
        shape = self.cost.shape
        groups, queries, ffn = np.moveaxis(widths, -1, 0)  # (n, blocks) each
        index = np.arange(shape.blocks)
        attention_error = self.attention_error[index, groups, queries]
        mlp_error = self.mlp_error[index, ffn]
        heads_kept = groups * queries / (shape.kv_groups * shape.queries_per_group)
        ffn_kept = ffn / shape.ffn
        parts = [groups / shape.kv_groups] if shape.queries_per_group > 1 else []
        parts += [heads_kept, ffn_kept, attention_error, mlp_error]
        for kept in (heads_kept, ffn_kept):
            parts += [
                np.stack(
                    [kept.mean(1), kept.min(1), kept.std(1), (kept == 1).mean(1), (kept == 0).mean(1)], axis=1
                )
            ]
        costs = self.cost.of_widths(widths)
        whole = self.cost(shape.parent)
        parts += [
            np.stack(
                [
                    attention_error.sum(1),
                    mlp_error.sum(1),
                    np.maximum(attention_error, mlp_error).max(1),
                    ((groups == 0) & (ffn == 0)).mean(1),
                    *(costs[name] / whole[name] for name in ("block_parameters", "flops", "kv_cache_bytes")),
                ],
                axis=1,
            )
        ]
        return np.concatenate(parts, axis=1).astype(np.float64)
