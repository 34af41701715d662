"""What a family that is not supported has of LLaMA's layout, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from data.errors import InputError
from nas.families.family import Family
from nas.families.layer import Layer
from nas.families.table import FAMILIES, GUIDE, PREFIX, REFUSED, family_of
from nas.modeling_subnet import Layout

_BLOCK = Layer(nn.Module(), Layout())
LLAMA = (*map(_BLOCK.path, _BLOCK.names), *Layout().attention_norms, *Layout().mlp_norms)
"""The modules of a block of LLaMA's."""


def check_supported(config: PreTrainedConfig) -> None:
    """Raise `InputError` for a family that is not supported: with the reason, where one is known, else with
    what an empty model of it lacks of LLaMA's layout. Code that comes with a model is never run."""
    kind = str(config.model_type)
    if kind in FAMILIES or kind in REFUSED or kind.startswith(PREFIX):
        family_of(config)
        return
    lacks = lacking(config)
    if not lacks:
        raise InputError(
            f"model family {kind!r} is not supported yet, but has every module of LLaMA's layout: one line "
            f"in nas/families/table.py may be enough; python -m experiments.check_family {kind} tries it, "
            f"and {GUIDE} says how it is added"
        )
    others = f" (nor {len(lacks) - 1} more that LLaMA's layout has)" if len(lacks) > 1 else ""
    raise InputError(
        f"model family {kind!r} is not supported: {lacks[0]}{others}; supported are {', '.join(FAMILIES)}; "
        f"{GUIDE} says how one is added"
    )


@contextmanager
def supposed(config: PreTrainedConfig) -> Iterator[None]:
    """For a while, a family that is not in the table as `Family()`, laid out like LLaMA; `InputError` where
    it lacks what that takes."""
    kind = str(config.model_type)
    lacks = lacking(config)
    if lacks:
        check_supported(config)
    FAMILIES[kind] = Family()
    try:
        yield
    finally:
        del FAMILIES[kind]


def lacking(config: PreTrainedConfig) -> list[str]:
    """What a model of this configuration lacks of LLaMA's layout, each as the end of a sentence."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # whatever a configuration makes of a model's code
        return ["transformers builds no causal language model of it"]
    layout = Layout()
    blocks = _get(model, layout.layers)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return [f"it has no list of blocks at {layout.layers!r}"]
    return next((found for block in blocks if (found := _missing(block))), [])


def _missing(block: nn.Module) -> list[str]:
    found = {path: _get(block, path) for path in LLAMA}
    absent = [f"its blocks have no module {path!r}" for path, module in found.items() if module is None]
    other = [
        f"{path!r} of its blocks is a {type(module).__name__} and no plain linear map"
        for path, module in found.items()
        if module is not None and path.endswith("_proj") and type(module) is not nn.Linear
    ]
    return [*absent, *other]


def _get(model: nn.Module | PreTrainedModel, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
