"""What does each choice of a block cost on this device, and do the costs add up? A table in minutes.

Times every choice of attention and MLP in place, prefill and decode apart, then whole subnets of all sizes,
and says how far sums of the choices are from them. `experiments.compress --max-latency MS` limits by it,
`experiments.search_subnets` searches by it.

    python -m experiments.measure_latency --parent demo
    python -m experiments.measure_latency --parent FOLDER --latency-batch 8 --latency-context 1024
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import InputError
from experiments.command_line import check_least, option, run
from experiments.latencies import measured
from experiments.results import usable
from experiments.stages import Stages
from nas.families import shape_of
from nas.latency_table import LatencyTable, Request, write_latency
from nas.parent import DTYPES, choose_device, choose_dtype, load_parent
from nas.space import SearchSpace, default_space


@dataclass(frozen=True)
class Settings:
    """A parent, a device and a request."""

    parent: str = option("demo", "model whose choices are timed: a Hub id, a local folder or demo")
    latency_batch: int = option(1, "texts in a request", group="request", least=1)
    latency_context: int = option(256, "tokens of each that are read at once", group="request", least=1)
    latency_tokens: int = option(8, "tokens of each that are then written", group="request", least=1)
    latency_repeats: int = option(11, "times that every choice is measured", group="request", least=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", group="run")
    dtype: str = option(
        "auto", "what is computed in; auto is bfloat16 on CUDA, else float32", group="run", choices=DTYPES
    )
    out: Path = option(Path("runs/latency.json"), "file of the table; an older one is replaced", group="run")


def main(settings: Settings) -> None:
    """Measure, write, show."""
    check_least(settings)
    if settings.out.is_dir():
        raise InputError(f"--out {settings.out} is a folder; give a file")
    usable(settings.out.parent, "--out")
    stages = Stages()
    with stages("load"):
        device = choose_device(settings.device)
        parent, _ = load_parent(settings.parent, device, choose_dtype(settings.dtype, device))
        longest = getattr(parent.config, "max_position_embeddings", None)
        if longest and settings.latency_context + settings.latency_tokens > longest:
            raise InputError(
                f"--latency-context {settings.latency_context} and --latency-tokens "
                f"{settings.latency_tokens} are more than the parent's {longest} positions; give fewer"
            )
        shape = shape_of(parent)
        space = default_space(shape)
    request = Request(settings.latency_batch, settings.latency_context, settings.latency_tokens)
    with stages("latency"):
        table = measured(parent, shape, space, request, settings.latency_repeats)
    write_latency(table, settings.out)
    print("\n".join(in_words(table, space)))
    print(f"\n{settings.out}")


def in_words(table: LatencyTable, space: SearchSpace) -> list[str]:
    """The table as a person reads it: a line for every KV-group count and for some channel counts."""
    shape, phases = table.shape, {"prefill": table.prefill, "decode, a token": table.decode}
    lines = [f"{table.words()}; milliseconds", f"{'':24}" + "".join(f"{name:>18}" for name in phases)]

    def line(name: str, values: list[float]) -> str:
        return f"{name:24}" + "".join(f"{value:18.3f}" for value in values)

    lines.append(line("the parent", [each.whole for each in phases.values()]))
    lines.append("difference that one block makes which keeps only")
    queries = shape.queries_per_group
    for groups in space.choices[0].tolist():
        kept = (groups, queries if groups else 0)
        lines.append(line(f"  {groups} KV groups", [each.attention[kept] for each in phases.values()]))
    ffn = space.choices[2]
    for channels in ffn[np.linspace(0, len(ffn) - 1, 9).round().astype(int)].tolist():
        lines.append(line(f"  {channels} channels", [each.mlp[channels] for each in phases.values()]))
    lines.append("sums against whole subnets, mean error")
    for name, percent in (("raw_error", "  as they are"), ("error", "  after a line")):
        lines.append(
            f"{percent:24}"
            + "".join(f"{100 * getattr(each.calibration, name):17.1f}%" for each in phases.values())
        )
    return lines


if __name__ == "__main__":
    sys.exit(run(Settings, main))
