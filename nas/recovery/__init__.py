"""Recovery: short training of a subnet after the cut, on text or towards its parent's logits.

A method says which weights are trained, in two functions: `attach(model, recipe)` gives the model to train,
whose parameters that require a gradient are the trained ones, and `detach(trained)` the plain model again.
Both may change the model they are given. Adding one is one file and one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from nas.recovery import full, lora
from nas.recovery.recipe import Recipe


@dataclass(frozen=True)
class Method:
    """How weights become trainable and plain again, and the learning rate where the recipe names none: good
    for 20 to 100 steps on a parent of 8 M parameters; parents of billions want a tenth of it or less."""

    attach: Callable[[PreTrainedModel, Recipe], nn.Module]
    detach: Callable[[nn.Module], PreTrainedModel]
    learning_rate: float


METHODS: dict[str, Method] = {
    "full": Method(full.attach, full.detach, 3e-4),
    "lora": Method(lora.attach, lora.detach, 1e-3),
}

__all__ = ["METHODS", "Method", "Recipe"]
