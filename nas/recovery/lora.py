"""LoRA recovery: low-rank adapters beside every projection of every block, merged into it at the end.

Hu et al., arXiv 2106.09685: a projection W becomes W + (alpha / r) B A with A (r, in) random and B (out, r)
zero at the start. The adapters are built on the cut projections, so that blocks may differ in width and lack
modules. peft is an optional extra: `pip install 'secateur[lora]'`.
"""

import warnings
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.families import layers_of, layout_of
from nas.recovery.recipe import Recipe


def attach(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    """The model with adapters (in float32) that alone are trained; `InputError` without peft.

    Their first values are drawn from torch's global generator.
    """
    if recipe.embeddings:
        raise InputError("embeddings are trained by the method full only; leave them out with lora")
    peft = import_peft()
    config = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.dropout,
        target_modules=[
            f"{layout_of(model.config).layers}.{index}.{layer.path(name)}"
            for index, layer in enumerate(layers_of(model))
            for name, _ in layer.projections()
        ],
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers by names that are on their way out.
        warnings.simplefilter("ignore", FutureWarning)
        return cast(nn.Module, peft.get_peft_model(model, config))


def detach(trained: nn.Module) -> PreTrainedModel:
    """The model with the adapters merged into its weights: the same logits, no trace of peft."""
    adapted: Any = trained
    return cast(PreTrainedModel, adapted.merge_and_unload())


def import_peft() -> Any:
    """The library; `InputError` says how to get it."""
    try:
        import peft
    except ImportError as error:
        raise InputError(f"LoRA needs peft ({error}); pip install 'secateur[lora]'") from error
    return peft
