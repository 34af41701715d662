"""Take a parent's fused and transposed projections apart, so that all families are cut and repaired alike.

A family may keep several projections in one matrix, or transposed (GPT-2's Conv1D). Once a model is loaded
each becomes a plain linear map; a fused one is held together by a module that computes what the one matrix
did. Checkpoints are written with the family's own matrices again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from nas.families.layer import Layer, layers_of
from nas.families.table import PREFIX, layout_of
from nas.modeling_subnet import AlibiAttention, head_dim_of, keep_biases


class Fused(nn.Module):
    """Projections of the same input where a family has one matrix.

    Outputs lie one behind the other; where `head_dim` is given, by KV group: its queries, its key, its value.
    """

    def __init__(self, projections: dict[str, nn.Linear], head_dim: int | None = None) -> None:
        super().__init__()
        self.head_dim = head_dim
        for name, linear in projections.items():
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., rows of all)."""
        return self._together([linear(x) for linear in self.children()], -1)

    def fused(self, name: str) -> Tensor | None:
        """The one "weight" (rows, in) or "bias" (rows,) of the family's matrix."""
        parts = [getattr(linear, name) for linear in self.children()]
        return None if parts[0] is None else self._together(parts, 0)

    def _together(self, parts: list[Tensor], dim: int) -> Tensor:
        if self.head_dim is None:
            return torch.cat(parts, dim)
        groups = parts[-1].shape[dim] // self.head_dim
        dim %= parts[0].dim()
        split = [part.unflatten(dim, (groups, -1)) for part in parts]
        return torch.cat(split, dim + 1).flatten(dim, dim + 1)


@torch.no_grad()
def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model, changed in place, with every projection of its blocks an `nn.Linear`; the same function up
    to rounding. A model that is so already stays as it is."""
    for layer in layers_of(model):
        plain_block(layer, model.config.num_attention_heads)
    return model


@torch.no_grad()
def plain_block(layer: Layer, heads: int) -> None:
    """The same for one block of a model with so many query heads."""
    lay, block = layer.layout, layer.module
    has_attention = hasattr(block.get_submodule(lay.attention), lay.output)
    if has_attention:
        _unfuse_attention(layer, heads)
        _straighten(block, lay.within("attention", lay.output))
    if lay.experts or not hasattr(block.get_submodule(lay.mlp), lay.down.split(".")[-1]):
        return
    if lay.gate_up:
        fused = block.get_submodule(lay.within("mlp", lay.gate_up))
        if isinstance(fused, nn.Linear):
            parts = dict(zip(("gate_proj", "up_proj"), _split(fused, 2), strict=True))
            block.set_submodule(lay.within("mlp", lay.gate_up), Fused(parts))
    else:
        _straighten(block, lay.within("mlp", lay.up))
    _straighten(block, lay.within("mlp", lay.down))


def native_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors by the names, and in the matrices, of its family: the inverse of `plain`."""
    state = model.state_dict()
    layout = layout_of(model.config)
    for name, module in model.get_submodule(layout.layers).named_modules():
        path = f"{layout.layers}.{name}"
        if isinstance(module, Fused):
            for part in ("weight", "bias"):
                for child, _ in module.named_children():
                    state.pop(f"{path}.{child}.{part}", None)
                whole = module.fused(part)
                if whole is not None:
                    state[f"{path}.{part}"] = whole
    if layout.transposed:
        for index, layer in enumerate(layers_of(model)):
            for place in (
                layout.within("attention", layout.qkv), layout.within("attention", layout.output),
                layout.within("mlp", layout.up), layout.within("mlp", layout.down),
            ):  # fmt: skip
                key = f"{layout.layers}.{index}.{place}.weight"
                if key in state and not isinstance(layer.module.get_submodule(place), Conv1D):
                    state[key] = state[key].T.contiguous()
    return state


def write_native(model: PreTrainedModel, folder: Path) -> None:
    """Write a model that `plain` took apart as transformers reads it, without the numbers of its heads unless
    it was loaded with code that knows them (`nas.export`)."""
    state = native_state(model)
    if not str(model.config.model_type).startswith(PREFIX):
        state = {name: tensor for name, tensor in state.items() if not name.endswith("attention.heads")}
    model.save_pretrained(folder, state_dict=state)


def _unfuse_attention(layer: Layer, heads: int) -> None:
    lay, attention = layer.layout, layer.attention
    if lay.alibi and not isinstance(attention, AlibiAttention) and not hasattr(attention, "heads"):
        keep_biases(attention, torch.arange(heads, device=attention.query_key_value.weight.device), heads)
    if not lay.qkv or isinstance(getattr(attention, lay.qkv), Fused):
        return
    head_dim = head_dim_of(attention)
    fused = _linear(getattr(attention, lay.qkv))
    inner = _columns(getattr(attention, lay.output))
    groups = (fused.out_features - inner) // (2 * head_dim)
    queries = inner // (groups * head_dim)
    sizes = [groups * queries * head_dim, groups * head_dim, groups * head_dim]
    if lay.grouped:
        rows = torch.arange(fused.out_features, device=fused.weight.device).view(groups, -1, head_dim)
        order = torch.cat(
            [rows[:, :queries].flatten(), rows[:, queries].flatten(), rows[:, queries + 1].flatten()]
        )
        fused = _of(fused.weight[order], None if fused.bias is None else fused.bias[order])
    weights = fused.weight.split(sizes)
    biases = [None] * 3 if fused.bias is None else fused.bias.split(sizes)
    parts = {
        name: _of(weight.clone(), None if bias is None else bias.clone())
        for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True)
    }
    setattr(attention, lay.qkv, Fused(parts, head_dim if lay.grouped else None))


def _split(fused: nn.Linear, parts: int) -> list[nn.Linear]:
    biases = [None] * parts if fused.bias is None else fused.bias.chunk(parts)
    return [
        _of(weight.clone(), None if bias is None else bias.clone())
        for weight, bias in zip(fused.weight.chunk(parts), biases, strict=True)
    ]


def _straighten(block: nn.Module, path: str) -> None:
    block.set_submodule(path, _linear(block.get_submodule(path)))


def _linear(module: nn.Module) -> nn.Linear:
    """A Conv1D, or a linear map of a class that only computes it otherwise (falcon's), as a plain one."""
    if isinstance(module, Conv1D):
        return _of(module.weight.T.contiguous(), module.bias)
    if isinstance(module, FalconLinear):
        return _of(module.weight, module.bias)
    return module  # anything that is not linear is refused by `shape_of`


def _columns(module: nn.Module) -> int:
    return int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])


def _of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear map of these tensors themselves."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
