"""Build a latency table: every choice of a module timed in place, then whole subnets against their sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from nas.latency import Latency, device_name, measure_latency
from nas.latency_table import Calibration, LatencyTable, Phase, Request
from nas.proposals import keep_attention
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
    the turns counts, because disturbances only add to it; no choice takes less than a smaller one (`rising`).
    All blocks of a parent are of one shape, so that one table serves them all. `progress` is told of each
    turn of a model.
    """
    whole = shape.whole
    changed = slice(1, None) if shape.blocks > 1 else slice(None)
    groups, queries, ffn = choices_anywhere(space)
    heads = sorted(
        {(g, q if g else 0) for g in groups for q in queries}
        - {(shape.kv_groups, shape.queries_per_group)}
        - ({(0, 0)} if shape.blocks == 1 else set())
    )
    channels = [c for c in ffn if c != shape.ffn]
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
        attention, mlp = np.minimum(rising(attention), 0.0), np.minimum(rising(mlp), 0.0)
        none = Calibration(1.0, 0.0, float("nan"), float("nan"), (), ())
        added_up = Phase(float(alone[0]), attention, mlp, none).added_up(subnets)
        return Phase(float(alone[0]), attention, mlp, calibrated(added_up, together))

    return LatencyTable(
        device=device_name(parent.device),
        dtype=str(parent.dtype).removeprefix("torch."),
        request=request,
        shape=shape,
        prefill=phase(lambda each: min(each.prefill_turns)),
        decode=phase(lambda each: min(each.decode_turns)),
    )


def choices_anywhere(space: SearchSpace) -> list[list[int]]:
    """KV groups, queries per group and FFN channels that are a choice in some block: blocks differ in them
    where an engine needs a part of one."""
    return [np.unique(np.concatenate(space.choices[kind::3])).tolist() for kind in range(3)]


def drawn(space: SearchSpace, count: int, rng: np.random.Generator) -> Widths:
    """Subnets of all sizes whose every knob scatters about a level of its own, skipped modules among them:
    what a search comes upon."""
    levels = np.linspace(0.1, 1.0, count)[rng.permutation(count)]
    part = np.clip(levels[:, None] + rng.normal(0, 0.25, (count, len(space.depths))), 0, 1)
    return space.widths(keep_attention(space, np.rint(part * (space.depths - 1)).astype(np.int64)))


def calibrated(added_up: NDArray[np.float64], measured: NDArray[np.float64]) -> Calibration:
    """The line from sums to measurements by relative least squares on the first half, and its error on the
    second. Sums stay as they are where a line does not rise, or does not predict those of the first half
    better that it was fitted without."""
    half = len(measured) // 2
    x, y = added_up[:half], measured[:half]

    def fitted(rows: NDArray[np.intp]) -> tuple[float, float]:
        terms = np.stack([x[rows], np.ones(len(rows))], axis=1) / y[rows, None]
        slope, offset = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)[0]
        return float(slope), float(offset)

    def error(predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        return float(np.mean(np.abs(predicted - truth) / truth))

    left_out = np.empty(half)
    for row in range(half):
        slope, offset = fitted(np.delete(np.arange(half), row))
        left_out[row] = offset + slope * x[row]
    slope, offset = fitted(np.arange(half))
    if slope <= 0 or error(left_out, y) >= error(x, y):
        slope, offset = 1.0, 0.0
    line = offset + slope * added_up
    return Calibration(
        slope,
        offset,
        error(line[half:], measured[half:]),
        error(added_up[half:], measured[half:]),
        tuple(line.tolist()),
        tuple(measured.tolist()),
    )


def rising(added: NDArray[np.float64]) -> NDArray[np.float64]:
    """What choices add, no larger one less than a smaller: the running maximum along every axis. A hard
    budget is then met by taking steps down; what is not measured (NaN) stays unknown."""
    known = np.where(np.isnan(added), -np.inf, added)
    for axis in range(added.ndim):
        known = np.maximum.accumulate(known, axis=axis)
    return np.where(np.isnan(added), np.nan, known)
