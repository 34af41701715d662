"""How a recovery trains: rate by step, data order by step, and the numbers of both methods."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """The numbers of a recovery besides its steps.

    A step takes `batch_size` windows, at most `micro_batch` of them in a forward pass (None: all). The rate
    rises linearly to `learning_rate` (None: the method's own) over the fraction `warmup` of the steps and
    falls to 0 as a cosine. `alpha` is the share of cross-entropy beside distillation. `weight_decay` acts on
    matrices, `clip` on the norm of the whole gradient. `embeddings` trains embeddings, final norm and head as
    well, with `full`. `rank`, `lora_alpha` and `dropout` are LoRA's, as LLM-Pruner sets them.

    Validation loss is measured every `validate_every` steps, a state file written every `save_every`.
    """

    batch_size: int = 8
    micro_batch: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    alpha: float = 0.0
    embeddings: bool = False
    rank: int = 8
    lora_alpha: float = 16.0
    dropout: float = 0.05
    seed: int = 0
    validate_every: int = 50
    save_every: int = 50

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch", "rank", "validate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"a recovery's {name} is {value}; give 1 or more")
        for name in ("learning_rate", "clip", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"a recovery's {name} is {value}; give a finite number above 0")
        for name in ("warmup", "alpha", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"a recovery's {name} is {getattr(self, name)}; give 0 to 1")
        for name in ("weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"a recovery's {name} is {getattr(self, name)}; give 0 or more")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step as a fraction of the highest."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1)))

    def rows(self, step: int, count: int) -> Tensor:
        """Which of `count` windows a step sees, (batch_size,): pass after pass over all of them, each in an
        order of its own. Depends on the seed and the step alone, so that every subnet sees the same."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {
            turn: np.random.default_rng([self.seed, turn]).permutation(count)
            for turn in set((places // count).tolist())
        }
        return torch.tensor([int(orders[place // count][place % count]) for place in places.tolist()])
