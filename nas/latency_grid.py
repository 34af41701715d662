"""Build a latency table: every choice of a module timed in place, then whole subnets against their sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from nas.latency import Latency, device_name, measure_latency
from nas.latency_table import Calibration, LatencyTable, Phase, Request
from nas.shape import Shape, Widths, architecture_of
from nas.space import SearchSpace
from nas.subnet import cut

SUBNETS = 16
"""Whole subnets that sums are held against: half to fit a line, half to judge it."""


def measure_table(
    parent: PreTrainedModel,
    shape: Shape,
    space: SearchSpace,
    request: Request,
    *,
    repeats: int = 7,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> LatencyTable:
    """The table of a parent on the device where it is.

    A choice is timed where it works, in a whole model: all blocks but the first make it, and a block's share
    of the difference to the whole parent is what the choice adds (the first stays whole because a model keeps
    attention somewhere). Models take turns, so that a drift of the machine meets all alike, and the least of
    the turns counts, because disturbances only add to it. All blocks of a parent are of one shape, so that
    one table serves them all. `progress` is told of each turn of a model.
    """
    whole = np.tile([shape.kv_groups, shape.queries_per_group, shape.ffn], (shape.blocks, 1))
    changed = slice(1, None) if shape.blocks > 1 else slice(None)
    heads = sorted(
        {(g, q if g else 0) for g in space.choices[0].tolist() for q in space.choices[1].tolist()}
        - {(shape.kv_groups, shape.queries_per_group)}
        - ({(0, 0)} if shape.blocks == 1 else set())
    )
    channels = [c for c in space.choices[2].tolist() if c != shape.ffn]
    single = np.tile(whole, (1 + len(heads) + len(channels), 1, 1))
    for number, pair in enumerate(heads, 1):
        single[number, changed, :2] = pair
    for number, width in enumerate(channels, 1 + len(heads)):
        single[number, changed, 2] = width
    subnets = drawn(space, SUBNETS, np.random.default_rng(seed))
    rows = np.concatenate([single, subnets])
    models = [cut(parent, shape, architecture_of(row, shape)) for row in rows]
    measured = measure_latency(
        models, batch=request.batch, context=request.context, tokens=max(request.tokens, 1),
        repeats=repeats, progress=progress,
    )  # fmt: skip

    def phase(value: Callable[[Latency], float]) -> Phase:
        times = np.array([value(each) for each in measured])
        alone, together = times[: len(single)], times[len(single) :]
        share = (alone - alone[0]) / len(whole[changed])
        attention = np.full((shape.kv_groups + 1, shape.queries_per_group + 1), np.nan)
        mlp = np.full(shape.ffn + 1, np.nan)
        attention[-1, -1] = mlp[-1] = 0.0
        for number, pair in enumerate(heads, 1):
            attention[pair] = share[number]
        mlp[channels] = share[1 + len(heads) :]
        unfitted = Phase(
            float(alone[0]), attention, mlp, Calibration(1.0, 0.0, float("nan"), float("nan"), (), ())
        )
        return Phase(float(alone[0]), attention, mlp, calibrated(unfitted.added_up(subnets), together))

    return LatencyTable(
        device=device_name(parent.device),
        dtype=str(parent.dtype).removeprefix("torch."),
        request=request,
        shape=shape,
        prefill=phase(lambda each: min(each.prefill_turns)),
        decode=phase(lambda each: min(each.decode_turns)),
    )


def drawn(space: SearchSpace, count: int, rng: np.random.Generator) -> Widths:
    """Subnets of all sizes whose every knob scatters about a level of its own, attention in each block."""
    rows = []
    for level in np.linspace(0.2, 1.0, count)[rng.permutation(count)]:
        part = np.clip(level + rng.normal(0, 0.2, len(space.depths)), 0, 1)
        rows.append(np.maximum(np.rint(part * (space.depths - 1)), space.depths > 1))
    return space.widths(np.stack(rows).astype(np.int64))


def calibrated(added_up: NDArray[np.float64], measured: NDArray[np.float64]) -> Calibration:
    """The line from sums to measurements by relative least squares on the first half, and its error on the
    second; without a line that rises, sums stay as they are."""
    half = len(measured) // 2
    terms = np.stack([added_up[:half], np.ones(half)], axis=1) / measured[:half, None]
    slope, offset = np.linalg.lstsq(terms, np.ones(half), rcond=None)[0]
    if slope <= 0:
        slope, offset = 1.0, 0.0
    line = offset + slope * added_up

    def error(predicted: NDArray[np.float64]) -> float:
        return float(np.mean(np.abs(predicted[half:] - measured[half:]) / measured[half:]))

    return Calibration(
        float(slope),
        float(offset),
        error(line),
        error(added_up),
        tuple(line.tolist()),
        tuple(measured.tolist()),
    )
