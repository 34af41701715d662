"""From a parent to what a search needs: rank, permute, and compute every repair a cut can ask for, once.

Orders and repairs are cached on disk under the digest of their inputs and memory-mapped from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from nas.alone import alone
from nas.block_files import KINDS, choices_of_block, fill, permuted_in_files, read
from nas.importance import CRITERIA
from nas.placement import placement_of
from nas.ranking import Ranking, permute
from nas.repair.bank import Bank, attention_key, mlp_key
from nas.sampling import Hints
from nas.shape import Shape
from nas.space import SearchSpace

FORMAT = 5
"""Raised whenever orders or repairs are computed differently, so that old files are not found."""


@dataclass(frozen=True)
class Prepared:
    """The permuted parent, its repair bank, and what is known of each block before any search: its influence
    (blocks,) and the relative output error of its choices, attention (blocks, G + 1, Q + 1) and MLP
    (blocks, P + 1), NaN where the space has no such choice."""

    parent: PreTrainedModel
    bank: Bank
    influence: NDArray[np.float64]
    attention_error: NDArray[np.float64]
    mlp_error: NDArray[np.float64]

    @property
    def hints(self) -> Hints:
        """What structured starts are made from."""
        return Hints(self.influence, self.attention_error, self.mlp_error)


def prepare(
    parent: PreTrainedModel,
    shape: Shape,
    space: SearchSpace,
    windows: Tensor,
    ranking: str,
    cache: Path,
    inputs: Mapping[str, object],
    *,
    batch_size: int = 8,
    seed: int = 0,
    quiet: bool = False,
) -> Prepared:
    """Calibrate on `windows` (n, seq_len), rank by the criterion named `ranking`, permute and fill the bank.

    `inputs` names all that the result depends on besides the arguments here (the parent's digest, how the
    windows were made); what is in `cache` for the same inputs is not computed again, block by block. The
    permuted parent of a placed one lies in the cache, too. The parent itself is left as it is.
    """
    key = {**inputs, "ranking": ranking, "knobs": space.knobs, "format": FORMAT}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = cache / digest
    fill(
        parent, shape, space, windows, CRITERIA[ranking], folder,
        batch_size=batch_size, seed=seed, quiet=quiet,
    )  # fmt: skip
    blocks = [read(folder, block) or {} for block in range(shape.blocks)]
    matrices = {k.removeprefix("matrix."): v for b in blocks for k, v in b.items() if k.startswith("matrix.")}
    errors = {
        k.removeprefix("error."): float(v) for b in blocks for k, v in b.items() if k.startswith("error.")
    }
    attention_error, mlp_error = _error_tables(shape, space, errors)
    if parent.device.type != "cpu":
        matrices = {name: matrix.to(parent.device) for name, matrix in matrices.items()}
    if placement_of(parent) is None:
        orders = Ranking(*(tuple(b[f"order.{kind}"].to(parent.device) for b in blocks) for kind in KINDS))
        permuted = permute(parent, shape, orders)
    else:
        with alone(folder):
            permuted = permuted_in_files(parent, shape, folder)
    return Prepared(
        parent=permuted,
        bank=Bank(matrices, errors),
        influence=np.array([float(b["influence"]) for b in blocks]),
        attention_error=attention_error,
        mlp_error=mlp_error,
    )


def _error_tables(
    shape: Shape, space: SearchSpace, errors: Mapping[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    attention = np.full((shape.blocks, shape.kv_groups + 1, shape.queries_per_group + 1), np.nan)
    mlp = np.full((shape.blocks, shape.ffn + 1), np.nan)
    attention[:, 0, 0] = mlp[:, 0] = 1.0
    for block in range(shape.blocks):
        heads, widths = choices_of_block(space, block)
        for queries, groups in heads.items():
            for count in groups:
                attention[block, count, queries] = errors[attention_key(block, count, queries)]
        for width in widths:
            mlp[block, width] = errors[mlp_key(block, width)]
    return attention, mlp
