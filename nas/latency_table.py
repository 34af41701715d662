"""What a device takes for each choice of a module, and for whole subnets by adding these up."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.json_text import from_json
from nas.shape import Shape, Widths, widths_of

FORMAT = 3


@dataclass(frozen=True)
class Request:
    """What is timed: `batch` texts of `context` tokens read at once, then `tokens` more of each written."""

    batch: int = 1
    context: int = 256
    tokens: int = 8


@dataclass(frozen=True)
class Calibration:
    """How far sums of modules can be trusted: whole subnets as predicted and as measured, in milliseconds.

    `measured` is fitted as `offset + slope * sum` on the first half of the subnets; `error` is the mean of
    |predicted - measured| / measured on the other half, with the line applied, `raw_error` without it.
    """

    slope: float
    offset: float
    error: float
    raw_error: float
    predicted: tuple[float, ...]
    measured: tuple[float, ...]


@dataclass(frozen=True, eq=False)  # arrays inside
class Phase:
    """Milliseconds of one phase: the whole parent's as measured, and what every choice of a single block's
    attention (G + 1, Q + 1) or MLP (P + 1) adds to that, 0 or less; NaN where it was not measured."""

    whole: float
    attention: NDArray[np.float64]
    mlp: NDArray[np.float64]
    calibration: Calibration

    def __call__(self, widths: Widths) -> NDArray[np.float64]:
        """(..., blocks, 3) widths -> (...,) milliseconds."""
        return self.calibration.offset + self.calibration.slope * self.added_up(widths)

    def added_up(self, widths: Widths) -> NDArray[np.float64]:
        """The same before calibration."""
        groups, queries, ffn = np.moveaxis(widths, -1, 0)
        total: NDArray[np.float64] = self.whole + (self.attention[groups, queries] + self.mlp[ffn]).sum(-1)
        return total


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """What requests take on one device: `prefill` of a whole request, `decode` of one token of each text."""

    device: str
    dtype: str
    request: Request
    shape: Shape
    prefill: Phase
    decode: Phase

    def __call__(self, widths: Widths) -> NDArray[np.float64]:
        """(..., blocks, 3) widths -> (...,) milliseconds of a request."""
        return self.prefill(widths) + self.request.tokens * self.decode(widths)

    def words(self) -> str:
        """What was measured, as people say it."""
        batch, context, tokens = self.request.batch, self.request.context, self.request.tokens
        return f"batch {batch}, {context} tokens read and {tokens} written, {self.dtype}, on {self.device}"


def write_latency(table: LatencyTable, path: Path) -> None:
    """As JSON, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
    beside.write_text(json.dumps({"format": FORMAT, **_plain(table)}, indent=1))
    beside.replace(path)


def read_latency(path: Path, shape: Shape) -> LatencyTable:
    """What `write_latency` wrote; `InputError` where it cannot be read, or its parent has another shape."""
    try:
        stored = from_json(path.read_text())
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']}, and this version reads {FORMAT}")
        # Of another shape nothing is made: it may have as many blocks as somebody likes to write.
        table = _table(stored, shape) if Shape(**stored["shape"]) == shape else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        raise InputError(
            f"the latency table {path} cannot be read ({said}); make one with experiments.measure_latency"
        ) from error
    if table is None:
        raise InputError(f"the latency table {path} is of a parent of another shape; measure this one")
    return table


def _table(stored: Any, shape: Shape) -> LatencyTable:
    table = LatencyTable(
        device=str(stored["device"]),
        dtype=str(stored["dtype"]),
        request=Request(**{name: int(value) for name, value in stored["request"].items()}),
        shape=shape,
        prefill=_phase(stored["prefill"], shape),
        decode=_phase(stored["decode"], shape),
    )
    if not np.isfinite(table(widths_of(shape.parent, shape))):
        raise ValueError("some of its numbers are not finite")
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [None if np.isnan(each) else float(each) for each in value.ravel()]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def _phase(stored: Any, shape: Shape) -> Phase:
    attention, mlp = (
        np.array([np.nan if each is None else float(each) for each in stored[name]])
        for name in ("attention", "mlp")
    )
    line = stored["calibration"]
    slope, offset, error, raw_error = (float(line[n]) for n in ("slope", "offset", "error", "raw_error"))
    predicted, measured = (tuple(map(float, line[name])) for name in ("predicted", "measured"))
    return Phase(
        float(stored["whole"]),
        attention.reshape(shape.kv_groups + 1, shape.queries_per_group + 1),
        mlp.reshape(shape.ffn + 1),
        Calibration(slope, offset, error, raw_error, predicted, measured),
    )
