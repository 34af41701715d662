"""Modules that share the tensors of others: what a subnet is made of."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from data.errors import InputError
from nas.adapters import Adapted
from nas.families.plain import Fused

Module = TypeVar("Module", bound=nn.Module)


def shell(module: Module) -> Module:
    """A module of the same class that shares parameters, buffers and children but not their containers, so
    that replacing a child leaves the original alone; hooks are not taken over."""
    if "forward" in module.__dict__:
        raise InputError(
            f"{type(module).__name__} runs a forward set on the object (by a patch, or by spreading the "
            "model over devices), which a subnet cannot take over; load the parent onto one device, unpatched"
        )
    new = object.__new__(type(module))
    new.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        if isinstance(value, (dict, OrderedDict)) and name.startswith("_"):
            new.__dict__[name] = type(value)() if "hooks" in name else value.copy()
    # So that transformers hooks the subnet, too, when hidden states are asked for.
    new.__dict__.pop("_output_capturing_hooks_installed", None)
    return new


def opened(block: nn.Module, path: str) -> None:
    """Put shells of the modules on a path, and of what holds fused projections in the last, in their places,
    so that what is in them can be replaced."""
    names = path.split(".")
    for end in range(1, len(names) + 1):
        here = ".".join(names[:end])
        block.set_submodule(here, shell(block.get_submodule(here)))
    for name, child in block.get_submodule(path).named_children():
        if isinstance(child, Fused):
            block.set_submodule(f"{path}.{name}", shell(child))


def sliced(linear: nn.Linear, rows: slice | Tensor, columns: slice | Tensor) -> nn.Linear:
    """A projection of these rows and columns, with those of its adapter; a view where both are slices."""
    weight = linear.weight[rows][:, columns]
    new = linear_of(linear, weight, None if linear.bias is None else linear.bias[rows])
    if isinstance(linear, Adapted):
        hold(new, "down", linear.down[:, columns])
        hold(new, "up", linear.up[rows])
    return new


def writer(linear: nn.Linear, weight: Tensor, hidden: int) -> nn.Linear:
    """A projection into the residual stream by this matrix: into the first hidden channels."""
    bias = None if linear.bias is None else linear.bias[:hidden]
    return linear_of(linear, weight[:hidden], bias)


def linear_of(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A projection like `linear` that uses these tensors as they are, without copying them."""
    new = shell(linear)
    new.out_features, new.in_features = weight.shape
    hold(new, "weight", weight)
    hold(new, "bias", bias)
    return new


def cut_norm(norm: nn.Module, config: PreTrainedConfig) -> nn.Module:
    """A norm over the first hidden channels, its gains times sqrt(d / d').

    Over d' channels the mean square is d / d' of what it is with the dropped ones counted as zeros, and the
    gains make up for it: the subnet is the parent with its dropped channels at zero, in the norms as well.
    The gains as they are, and gains that keep each norm's mean power on calibration text, were both worse.
    """
    new = shell(norm)
    scale = math.sqrt(norm.weight.shape[0] / config.hidden_size)
    hold(new, "weight", norm.weight[: config.hidden_size] * scale)
    new.variance_epsilon = config.rms_norm_eps
    return new


def hold(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Give a module this tensor: as its parameter, or as it is where gradients go back through it."""
    module._parameters.pop(name, None)
    # Both are asked, for a view taken without gradients says of itself what its base does.
    if tensor is not None and torch.is_grad_enabled() and tensor.requires_grad:
        setattr(module, name, tensor)
        return
    kept = isinstance(tensor, nn.Parameter) and not tensor.requires_grad  # one that is tied stays the same
    if tensor is not None and not kept:
        tensor = nn.Parameter(tensor, requires_grad=False)
    module.register_parameter(name, tensor)
