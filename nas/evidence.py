"""What importance criteria may ask of a parent: every kind of evidence, taken when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, overload

from torch import Tensor
from transformers import PreTrainedModel

from nas.activity import BlockActivity, block_activity, measure_activity
from nas.calibration import Statistics, calibrate, calibrate_block
from nas.families import layers_of
from nas.gradients import BlockGradients, measure_gradients
from nas.shape import Shape

T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """A parent and the windows (n, seq_len) that it is judged on; the parent is left as it is.

    Each kind takes one pass over all windows and is kept: `statistics` and `activity` forward, `gradients`
    forward and backward in float32, with twice the memory of the blocks' weights.
    """

    parent: PreTrainedModel
    shape: Shape
    windows: Tensor
    batch_size: int = 8
    seed: int = 0
    """Of criteria that draw."""
    progress: Callable[[int], object] = lambda done: None
    """Told how many windows each batch of `statistics` had."""

    @cached_property
    def statistics(self) -> Statistics:
        """Gram matrices of the inputs of the output matrices, and block influence."""
        return calibrate(self.parent, self.windows, batch_size=self.batch_size, progress=self.progress)

    @cached_property
    def activity(self) -> Sequence[BlockActivity]:
        """Means and magnitudes inside each block, and Gram matrices of its modules' inputs."""
        return measure_activity(self.parent, self.shape, self.windows, batch_size=self.batch_size)

    @cached_property
    def gradients(self) -> tuple[BlockGradients, ...]:
        """First-order gradients and the Fisher diagonal of each block's projections, window by window."""
        return measure_gradients(self.parent, self.windows)


class Only(Sequence[T]):
    """Blocks of which one is known: by its index, like all of them together."""

    def __init__(self, index: int, known: T) -> None:
        self._index, self._known = index, known

    def __len__(self) -> int:
        return self._index + 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if index != self._index:
            raise IndexError(f"only block {self._index} is known here, not {index}")
        return self._known


@dataclass(frozen=True)
class BlockEvidence(Evidence):
    """The same of one block alone, with the memory of its statistics, not of all: what criteria score a block
    from while it is on the device. `run()` sends all windows through the block; `whole` are the gradients of
    all blocks, where there are any."""

    block: int = 0
    run: Callable[[], object] = lambda: None
    whole: Callable[[], tuple[BlockGradients, ...]] = tuple

    @cached_property
    def statistics(self) -> Statistics:
        """Of the block."""
        one = calibrate_block(layers_of(self.parent)[self.block], self.run)
        return Statistics(
            Only(self.block, one.attention_gram[0]), Only(self.block, one.ffn_gram[0]),
            Only(self.block, one.influence[0]), one.tokens,
        )  # fmt: skip

    @cached_property
    def activity(self) -> Sequence[BlockActivity]:
        """Of the block."""
        return Only(self.block, block_activity(layers_of(self.parent)[self.block], self.shape, self.run))

    @cached_property
    def gradients(self) -> tuple[BlockGradients, ...]:
        """Of all blocks."""
        return self.whole()
