"""What architectures cost, in closed form: parameters, FLOPs, KV-cache bytes; and hard budgets on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from nas.architecture import Architecture
from nas.latency_table import LatencyTable
from nas.shape import HeadWidths, Shape, Widths, head_widths_of, widths_of

Counts = NDArray[np.int64]
"""One number per architecture, (...,)."""

Amounts = Mapping[str, NDArray[Any]]
"""Costs by name, (...,) each: whole numbers, but for latencies."""

FLAGS = {
    "block_parameters": "--keep",
    "parameters": "--max-parameters",
    "flops": "--max-flops",
    "kv_cache_bytes": "--max-kv-cache",
    "latency_ms": "--max-latency",
}
"""The option of the command line that limits each cost."""
COUNTED, LATENCY = ("block_parameters", "parameters", "flops", "kv_cache_bytes"), "latency_ms"
COSTS = (*COUNTED, LATENCY)
"""All costs: those in closed form, and what a device takes, which needs a table of measurements."""


def block_parameters(shape: Shape, widths: Widths, heads: HeadWidths | None = None) -> Counts:
    """Parameters of the decoder blocks, (...,): the quantity that `keep` is a fraction of.

    Here and below, `heads` (..., blocks) are head widths, by default whole.
    """
    groups, queries, ffn = np.moveaxis(widths, -1, 0)
    whole = groups * (shape.per_group + queries * shape.per_query)
    part = whole if heads is None else whole * heads // shape.head_dim  # without remainder
    attention = part + shape.attention_fixed * (groups > 0)
    mlp = ffn * shape.per_channel + shape.mlp_fixed * (ffn > 0)
    return (attention + mlp + shape.shared_norms * ((groups > 0) | (ffn > 0))).sum(-1)


def parameters(shape: Shape, widths: Widths, heads: HeadWidths | None = None) -> Counts:
    """All parameters, (...,), a tied head counted once."""
    return shape.outside + block_parameters(shape, widths, heads)


def flops(shape: Shape, widths: Widths, seq_len: int, heads: HeadWidths | None = None) -> Counts:
    """FLOPs of one forward pass over one window of `seq_len` tokens, (...,), head included.

    2 FLOPs per weight and token for every linear map, and 4 * heads * head_dim * seq_len^2 for the two
    attention products, counted full and not causal: what `torch.utils.flop_counter` counts. Of experts,
    those that a token visits and the router.
    """
    groups, queries, ffn = np.moveaxis(widths, -1, 0)
    head = shape.head_dim if heads is None else heads
    inner = groups * queries * head  # columns of o_proj
    if shape.experts_per_token:
        lines = (shape.lines - 1) * np.minimum(ffn, shape.experts_per_token) + ffn
    else:
        lines = shape.lines * ffn
    weights = shape.hidden * (2 * groups * head + 2 * inner + lines)
    return 2 * seq_len * (weights.sum(-1) + shape.vocab * shape.hidden) + 4 * seq_len**2 * inner.sum(-1)


def kv_cache_bytes(
    shape: Shape, widths: Widths, context: int, bytes_per_element: int, heads: HeadWidths | None = None
) -> Counts:
    """Bytes of keys and values that a context of this length leaves in the cache, (...,)."""
    head = shape.head_dim if heads is None else heads
    cached = widths[..., 0] * (widths[..., 1] if shape.caches_queries else 1)
    return 2 * (cached * head).sum(-1) * context * bytes_per_element


@dataclass(frozen=True)
class CostModel:
    """A parent's shape with the settings that its costs depend on, and what it takes on a device if that was
    measured."""

    shape: Shape
    seq_len: int
    bytes_per_element: int
    latency: LatencyTable | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The costs that are known here."""
        return COUNTED if self.latency is None else COSTS

    def of_widths(
        self,
        widths: Widths,
        names: Iterable[str] | None = None,
        hidden: Counts | None = None,
        heads: HeadWidths | None = None,
    ) -> Amounts:
        """The named costs, by default all of `names`, of many architectures, (..., blocks, 3) -> (...,) each.

        `hidden` (...,) are their hidden widths and `heads` (..., blocks) their head widths, by default the
        parent's; of others, latencies are not known.
        """
        names = [*(self.names if names is None else names)]
        if hidden is not None:  # all costs are straight lines in the hidden width
            none, one = (self.narrowed(width).of_widths(widths, names, heads=heads) for width in (0, 1))
            return {name: none[name] + hidden * (one[name] - none[name]) for name in none}
        formulas: dict[str, Callable[[], NDArray[Any]]] = {
            "block_parameters": lambda: block_parameters(self.shape, widths, heads),
            "parameters": lambda: parameters(self.shape, widths, heads),
            "flops": lambda: flops(self.shape, widths, self.seq_len, heads),
            "kv_cache_bytes": lambda: kv_cache_bytes(
                self.shape, widths, self.seq_len, self.bytes_per_element, heads
            ),
            LATENCY: lambda: self._latency(widths, heads),
        }
        return {name: formulas[name]() for name in names}

    def _latency(self, widths: Widths, heads: HeadWidths | None) -> NDArray[np.float64]:
        if self.latency is None or (heads is not None and (heads != self.shape.head_dim).any()):
            raise InputError("latencies were not measured for such subnets; leave --max-latency out")
        return self.latency(widths)

    def narrowed(self, hidden: int) -> CostModel:
        """The costs of the same parent with `hidden` of its hidden channels."""
        if hidden == self.shape.hidden:
            return self
        return replace(self, shape=self.shape.narrowed(hidden), latency=None)

    def __call__(self, architecture: Architecture) -> dict[str, int | float]:
        """All costs that are known of one architecture."""
        own, heads = self.narrowed(architecture.hidden), head_widths_of(architecture, self.shape)
        names = own.names if (heads == self.shape.head_dim).all() else COUNTED
        costs = own.of_widths(widths_of(architecture, self.shape), names, heads=heads)
        return {name: float(value) if name == LATENCY else int(value) for name, value in costs.items()}


@dataclass(frozen=True)
class Budget:
    """Hard limits: cost name to the largest allowed value."""

    cost: CostModel
    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        for name in self.limits:
            if name not in self.cost.names:
                raise InputError(
                    f"unknown cost {name!r} in the budget; known are {', '.join(self.cost.names)}"
                )
        _check_positive(self.limits)

    def load(
        self, widths: Widths, hidden: Counts | None = None, heads: HeadWidths | None = None
    ) -> NDArray[np.float64]:
        """The largest cost relative to its limit, (...,): at most 1 within the budget."""
        costs = self.cost.of_widths(widths, self.limits, hidden, heads)
        return np.max([costs[name] / limit for name, limit in self.limits.items()], axis=0)

    def allows(
        self, widths: Widths, hidden: Counts | None = None, heads: HeadWidths | None = None
    ) -> NDArray[np.bool_]:
        """Whether no limit is exceeded, (...,)."""
        return self.load(widths, hidden, heads) <= 1.0


def budget_of(cost: CostModel, keep: float | None = None, **limits: float | None) -> Budget:
    """The budget of these limits by the names of `COSTS`, `keep` as a fraction of the parent's block
    parameters; None is no limit."""
    check_limits(keep, **limits)
    given: dict[str, float] = {name: limit for name, limit in limits.items() if limit is not None}
    if keep is not None:
        given["block_parameters"] = int(keep * cost(cost.shape.parent)["block_parameters"])
    return Budget(cost, given)


def check_limits(keep: float | None = None, **limits: float | None) -> None:
    """Raise `InputError` for limits that no parent could meet, or none at all."""
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep is {keep}; give a fraction above 0 and at most 1")
    given = {"block_parameters": keep, **limits}
    _check_positive({name: limit for name, limit in given.items() if limit is not None})


def _check_positive(limits: Mapping[str, float]) -> None:
    if not limits:
        raise InputError("a budget needs at least one limit; give --keep or one of the --max options")
    for name, limit in limits.items():
        if limit <= 0:
            raise InputError(f"{FLAGS[name]} of {limit} leaves no model; give a positive limit")
