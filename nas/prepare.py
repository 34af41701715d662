"""From a parent to what a search needs: rank, permute, and compute every repair a cut can ask for, once.

Orders and repairs are cached on disk under the digest of their inputs and memory-mapped from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from nas.evidence import Evidence
from nas.importance import CRITERIA
from nas.ranking import Ranking, permute, permute_statistics, rank
from nas.repair.bank import Bank, attention_key, mlp_key, repair_block
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
    windows were made); a result with the same inputs is read from `cache` instead of being computed. The
    parent itself is left as it is.
    """
    key = {**inputs, "ranking": ranking, "knobs": space.knobs, "format": FORMAT}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = cache / f"{digest}.safetensors"
    stored = _read(path)
    if stored is None:
        stored = _compute(parent, shape, space, windows, ranking, batch_size, seed, quiet)
        _write(path, stored)
        stored = _read(path) or stored
    orders = Ranking(
        *(
            tuple(stored[f"order.{kind}.{i}"].to(parent.device) for i in range(shape.blocks))
            for kind in ("groups", "queries", "channels")
        )
    )
    matrices = {k.removeprefix("matrix."): v for k, v in stored.items() if k.startswith("matrix.")}
    errors = {k.removeprefix("error."): float(v) for k, v in stored.items() if k.startswith("error.")}
    attention_error, mlp_error = _error_tables(shape, space, errors)
    if parent.device.type != "cpu":
        matrices = {name: matrix.to(parent.device) for name, matrix in matrices.items()}
    return Prepared(
        parent=permute(parent, shape, orders),
        bank=Bank(matrices, errors),
        influence=stored["influence"].numpy(),
        attention_error=attention_error,
        mlp_error=mlp_error,
    )


def choices_of_block(space: SearchSpace, block: int) -> tuple[dict[int, tuple[int, ...]], tuple[int, ...]]:
    """What a bank must hold of a block: KV groups by queries per group, and FFN widths, without the skips."""
    groups = tuple(g for g in space.knobs[f"{block}.kv_groups"] if g)
    heads = {queries: groups for queries in space.knobs[f"{block}.queries_per_group"]}
    return heads, tuple(width for width in space.knobs[f"{block}.ffn"] if width)


def _compute(
    parent: PreTrainedModel,
    shape: Shape,
    space: SearchSpace,
    windows: Tensor,
    ranking: str,
    batch_size: int,
    seed: int,
    quiet: bool,
) -> dict[str, Tensor]:
    """Everything that is cached, as named tensors."""
    with tqdm(total=len(windows), desc="calibration", unit="window", disable=quiet, leave=False) as bar:
        evidence = Evidence(parent, shape, windows, batch_size, seed, progress=_ticker(bar))
        statistics = evidence.statistics
    with tqdm(total=shape.blocks, desc="ranking", unit="block", disable=quiet, leave=False) as bar:
        orders = rank(evidence, CRITERIA[ranking], progress=_ticker(bar))
    permuted = permute(parent, shape, orders)
    statistics = permute_statistics(shape, statistics, orders)
    stored: dict[str, Tensor] = {"influence": torch.tensor(statistics.influence, dtype=torch.float64)}
    for block in tqdm(range(shape.blocks), desc="repair bank", unit="block", disable=quiet, leave=False):
        for kind in ("groups", "queries", "channels"):
            stored[f"order.{kind}.{block}"] = getattr(orders, kind)[block].cpu()
        heads, widths = choices_of_block(space, block)
        bank = repair_block(permuted, shape, statistics, block, heads, widths)
        stored |= {f"matrix.{name}": matrix.cpu().clone() for name, matrix in bank.matrices.items()}
        stored |= {f"error.{name}": torch.tensor(value) for name, value in bank.errors.items()}
    return stored


def _ticker(bar: tqdm[None]) -> Callable[[int], object]:
    return lambda done: bar.update(done)


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


def _read(path: Path) -> dict[str, Tensor] | None:
    """The cached tensors, memory-mapped; None if there are none or the file is damaged."""
    try:
        return load_file(path) if path.is_file() else None
    except (SafetensorError, OSError):
        return None


def _write(path: Path, stored: dict[str, Tensor]) -> None:
    """Written beside and renamed, so that a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.part")
    save_file(stored, beside)
    beside.replace(path)
