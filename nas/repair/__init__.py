"""Repair of cut modules in closed form, one module at a time: no training.

A repair makes the subnet of a permuted parent, as a model of its own. Adding one is one file and one line in
`REPAIRS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.repair.sequential import repair_front_to_back
from nas.repair.steps import compensate, mean_bias, reconstruct
from nas.repair.stream import Stream
from nas.repair.walk import Step, walk
from nas.shape import Shape
from nas.subnet import OutputMatrices, cut

Make = Callable[[PreTrainedModel, Shape, Architecture, OutputMatrices, Stream], PreTrainedModel]
"""(permuted parent, its shape, architecture, bank of one-pass repairs, the parent's stream on calibration
windows) -> subnet. The parent, the bank and the stream stay as they are."""


@dataclass(frozen=True)
class Repair:
    """How it makes a subnet, and what a model card says of it."""

    make: Make
    words: str


def unrepaired(
    parent: PreTrainedModel, shape: Shape, architecture: Architecture, bank: OutputMatrices, dense: Stream
) -> PreTrainedModel:
    """The parent's own weights."""
    return cut(parent, shape, architecture, own=True)


def from_bank(
    parent: PreTrainedModel, shape: Shape, architecture: Architecture, bank: OutputMatrices, dense: Stream
) -> PreTrainedModel:
    """Output matrices as the bank has them: each the least-squares fit to the whole module, in the parent."""
    return cut(parent, shape, architecture, bank, own=True)


def walked(*steps: Step) -> Make:
    """Steps of a walk, behind the already repaired predecessors."""

    def make(
        parent: PreTrainedModel, shape: Shape, architecture: Architecture, bank: OutputMatrices, dense: Stream
    ) -> PreTrainedModel:
        return walk(parent, shape, architecture, dense, steps)

    return make


REPAIRS: dict[str, Repair] = {
    "none": Repair(unrepaired, "not repaired"),
    "mean_bias": Repair(walked(mean_bias), "the mean of what is cut added as biases"),
    "least_squares": Repair(from_bank, "output matrices refitted by least squares, each in the parent"),
    "reformation": Repair(walked(compensate()), "output matrices refitted by least squares, front to back"),
    "admm": Repair(walked(compensate(admm_steps=30)), "output matrices refitted by 30 steps of ADMM"),
    "two_step": Repair(
        walked(reconstruct(), compensate()),
        "inputs and outputs of every module refitted to the parent's, front to back",
    ),
    "front_to_back": Repair(
        repair_front_to_back,
        "repaired front to back, module by module, by least squares on calibration text",
    ),
}
