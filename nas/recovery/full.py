"""Full recovery: all parameters of the blocks are trained, and the rest of the model on request."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from nas.families import blocks_of
from nas.recovery.recipe import Recipe


def attach(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    """The model with its blocks open to training; weights become float32, for a bfloat16 weight takes no
    step as small as training's."""
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    model.requires_grad_(recipe.embeddings)
    blocks_of(model).requires_grad_(True)
    return model


def detach(trained: nn.Module) -> PreTrainedModel:
    """The model itself."""
    return cast(PreTrainedModel, trained)
