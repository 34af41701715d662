"""Blocks at both ends of a parent that published pruners leave alone."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import InputError
from experiments.command_line import option
from experiments.published.case import Case, Common
from nas.oneshot import ends


@dataclass(frozen=True)
class Protected(Common):
    """Settings of systems that protect the ends, scaled from the papers' depth to the parent's."""

    protect: float = option(
        0.125,
        "share of blocks left alone at the front, half as many at the end, at least one each (LLM-Pruner and "
        "its successors prune blocks 4 to 29 of 32); 0 for none",
        group="system",
    )


def protected(case: Case, share: float) -> tuple[int, ...]:
    """The blocks that are left alone. Raises `InputError` for a share that is none."""
    if not 0 <= share < 1:
        raise InputError(f"--protect is {share}; give 0 to less than 1")
    first = max(1, round(share * case.shape.blocks)) if share else 0
    return ends(case.shape, first, max(1, first // 2) if share else 0)
