"""The latency table of a parent on this device: read, found in the cache, or measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel

from data.errors import InputError
from nas.alone import alone
from nas.latency import device_name
from nas.latency_grid import SUBNETS, choices_anywhere, measure_table
from nas.latency_table import FORMAT, LatencyTable, Request, read_latency, write_latency
from nas.shape import Shape
from nas.space import SearchSpace


def latencies_of(
    parent: PreTrainedModel,
    shape: Shape,
    space: SearchSpace,
    request: Request,
    given: Path | None,
    repeats: int,
    cache: Path,
) -> LatencyTable | None:
    """The table `given`, or one that every choice was measured `repeats` times for; None for 0.

    A table is measured once for each device, dtype, shape and request, and kept in the cache: a machine that
    is busier later is not noticed. Raises `InputError` where the table given is of another shape or request.
    """
    if given is not None:
        table = read_latency(given, shape)
        if table.request != request:
            raise InputError(
                f"the latency table {given} is of {table.words()}, and this run asks for {asdict(request)}; "
                "give the same --latency-batch, --latency-context and --latency-tokens"
            )
        return table
    if not repeats:
        return None
    key = [
        FORMAT, device_name(parent.device), str(parent.dtype), asdict(request), asdict(shape),
        dict(space.knobs), repeats,
    ]  # fmt: skip
    path = cache / f"latency-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    with alone(path):
        if path.is_file():
            try:
                return read_latency(path, shape)
            except InputError:
                path.unlink()  # half a file of an older version: it is made anew
        table = measured(parent, shape, space, request, repeats)
        write_latency(table, path)
    return table


def measured(
    parent: PreTrainedModel, shape: Shape, space: SearchSpace, request: Request, repeats: int
) -> LatencyTable:
    """A fresh table, with a bar while it is measured."""
    groups, queries, ffn = (len(each) for each in choices_anywhere(space))
    choices = groups * queries + ffn + SUBNETS
    with tqdm(total=choices * (repeats + 1), desc="latency", unit="turn", leave=False) as bar:
        return measure_table(
            parent, shape, space, request, repeats=repeats, progress=lambda done: bar.update(done)
        )
