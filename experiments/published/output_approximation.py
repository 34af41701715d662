"""Greedy Output Approximation (arXiv 2407.19126): how far does one go without any training?

Modules are visited front to back. Each is first refitted to the parent's own outputs on the input that has
drifted behind the modules cut before (`--no-reconstruct` leaves that out), then its heads or channels are
ranked on the refitted module by the depth-2 second moment, heads that attend like another going first
(`--similarity`), and it is cut; `--compensate` refits the output matrix once more to what was cut. The same
share is cut from every block but the ends.

    python -m experiments.published.output_approximation --parent FOLDER --corpus FOLDER --moment product
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationMixin

from data.errors import InputError
from data.windows import spread
from experiments.command_line import option, run
from experiments.published.case import Case
from experiments.published.outcome import Outcome, run_system
from experiments.published.protection import Protected, protected
from nas.importance.output_energy import output_energy
from nas.importance.second_moment import product_form
from nas.oneshot import same_share
from nas.repair.steps import choose, compensate, reconstruct
from nas.repair.stream import Stream
from nas.repair.walk import Step, Visit, walk
from nas.shape import architecture_of
from nas.similarity import group_divergence, head_divergence, redundant


@dataclass(frozen=True)
class Settings(Protected):
    """The paper's, with the protected ends scaled to the parent's depth."""

    moment: Literal["product", "exact"] = option(
        "exact", "second moment of channels: as printed, or that of what down_proj reads", group="system"
    )
    similarity: float = option(
        0.0, "heads nearer than this Jensen-Shannon divergence count as alike; 0 for none", group="system"
    )
    literal: bool = option(False, "drop the first of two alike heads, not the less important", group="system")
    reconstruct: bool = option(True, "refit each module before it is cut", group="system")
    compensate: bool = option(False, "refit each output matrix after the cut", group="system")
    damping: float = option(1e-3, "ridge term of both refits, relative to the mean power", group="system")
    data: Literal["calibration", "random", "generated"] = option(
        "calibration", "what the statistics come from: text, random tokens, or text that the parent writes",
        group="system",
    )  # fmt: skip
    criterion_windows: int = option(16, "windows that heads are compared on", group="system")


def prune(case: Case, keep: float, settings: Settings) -> Outcome:
    """Reconstruct, choose, cut, module by module."""
    if settings.similarity < 0 or settings.damping <= 0 or settings.criterion_windows < 1:
        raise InputError(
            f"--similarity is {settings.similarity}, --damping {settings.damping} and --criterion-windows "
            f"{settings.criterion_windows}; give at least 0, more than 0 and at least 1"
        )
    spared = protected(case, settings.protect)
    architecture = architecture_of(same_share(case.budget(keep), spared), case.shape)
    channels = product_form if settings.moment == "product" else None
    log: dict[str, Any] = {"alike": {}}
    steps: list[Step] = [reconstruct(settings.damping)] if settings.reconstruct else []
    if settings.similarity:
        steps.append(choose(output_energy, channels, last=alike(settings, log["alike"])))
    else:
        steps.append(choose(output_energy, channels))
    if settings.compensate:
        steps.append(compensate(settings.damping))
    model = walk(
        case.parent, case.shape, architecture,
        Stream(case.parent, windows_of(case, settings), settings.batch_size), steps,
        untouched=frozenset(spared),
    )  # fmt: skip
    return Outcome(
        model,
        architecture,
        [
            f"units ranked by the depth-2 second moment, {settings.moment}, front to back",
            f"blocks {spared} protected",
            "modules refitted to the parent's outputs before the cut"
            if settings.reconstruct
            else "no repair",
            f"statistics from {settings.data}",
        ],
        log,
    )


def alike(settings: Settings, log: dict[int, list[int]]) -> Callable[[Visit, Tensor], list[int]]:
    """The KV groups of a block that another can stand in for, as the parent counts them; also in `log`."""

    def find(visit: Visit, importance: Tensor) -> list[int]:
        some = torch.cat(list(visit.normed))
        some = spread(some, min(settings.criterion_windows, len(some))).split(1)
        divergence = group_divergence(
            visit.shape, head_divergence(visit.layer.attention, visit.arguments, some)
        )
        log[visit.block.source] = redundant(
            divergence, importance, settings.similarity, literal=settings.literal
        )
        return log[visit.block.source]

    return find


def windows_of(case: Case, settings: Settings) -> Tensor:
    """The windows that all statistics come from, (n, seq_len)."""
    size = case.text.calibration.shape
    draw = torch.Generator().manual_seed(settings.seed)
    if settings.data == "calibration":
        return case.text.calibration
    random = torch.randint(0, case.shape.vocab, size, generator=draw)
    if settings.data == "random":
        return random
    return self_generated(case, random[:, :1], size[1], settings)


@torch.no_grad()
def self_generated(case: Case, starts: Tensor, length: int, settings: Settings) -> Tensor:
    """What the parent writes after each first token (n, 1), sampled, (n, length)."""
    assert isinstance(case.parent, GenerationMixin)
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        for batch in starts.to(case.parent.device).split(settings.batch_size * 4):
            parts.append(
                case.parent.generate(
                    batch, attention_mask=torch.ones_like(batch), do_sample=True,
                    max_length=length, min_length=length, top_k=0, pad_token_id=0,
                ).cpu()
            )  # fmt: skip
    return torch.cat(parts)


def main(settings: Settings) -> None:
    """One result for each fraction asked for."""
    run_system("output_approximation", prune, settings)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
