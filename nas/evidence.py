"""What importance criteria may ask of a parent: every kind of evidence, taken when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel

from nas.activity import BlockActivity, measure_activity
from nas.calibration import Statistics, calibrate
from nas.gradients import BlockGradients, measure_gradients
from nas.shape import Shape


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
    def activity(self) -> tuple[BlockActivity, ...]:
        """Means and magnitudes inside each block, and Gram matrices of its modules' inputs."""
        return measure_activity(self.parent, self.shape, self.windows, batch_size=self.batch_size)

    @cached_property
    def gradients(self) -> tuple[BlockGradients, ...]:
        """First-order gradients and the Fisher diagonal of each block's projections, window by window."""
        return measure_gradients(self.parent, self.windows)
