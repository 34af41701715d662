"""Parents bigger than the device: weights at home in memory or in files, and there one block at a time.

A model that is loaded whole onto one device has no placement, and all here leaves it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

import torch
from torch import Tensor, nn

from data.errors import InputError
from nas.tensor_files import in_file

PLACES = ("device", "cpu", "disk")
"""Where the weights of a parent may be at home."""
ROOM = 2**31
"""Bytes of the residual stream, at any one point, that may lie in memory; more lies in files."""
_NAME = "_secateur_placement"

Module = TypeVar("Module", bound=nn.Module)
Modules: TypeAlias = nn.Module | Iterable[nn.Module]
"""A module with all in it, or modules of which only what each holds itself is meant."""


@dataclass(frozen=True)
class Placement:
    """Where the blocks of a model are computed, whose weights are at home on the CPU.

    What is made of the model's weights, and streams that take more than `room` bytes, go into files in
    `folder`, mapped into memory. They have no names, so that their space is free again as soon as nothing
    uses them, however the process ends. Without a `keep_weights` new weights stay in memory.
    """

    device: torch.device
    folder: Path
    keep_weights: bool = True
    room: int = ROOM


def place(model: Module, placement: Placement) -> Module:
    """The model itself, from now on computed block by block; whatever is cut out of it inherits that."""
    model.__dict__[_NAME] = placement
    return model


def placement_of(model: nn.Module) -> Placement | None:
    """How the model is placed; None for one that is whole on its device."""
    found: Placement | None = model.__dict__.get(_NAME)
    return found


def device_of(model: nn.Module) -> torch.device:
    """Where the model's blocks are computed."""
    placement = placement_of(model)
    return next(model.parameters()).device if placement is None else placement.device


def check_whole(model: nn.Module, what: str) -> None:
    """Raise `InputError` where a model is placed and `what` needs it whole on its device."""
    if placement_of(model) is not None:
        raise InputError(
            f"{what} needs the whole model on its device, and this one is there block by block; give "
            "--parent-on device, or do without"
        )


@contextmanager
def resident(modules: Modules, device: torch.device) -> Iterator[None]:
    """Have the weights and buffers of a module with all in it, or those that some modules hold themselves, on
    a device for a while; then the very tensors from before are back. What is there already stays."""
    moved: dict[int, Tensor] = {}
    before: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    try:
        for module in holders(modules):
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.device != device:
                        if id(tensor) not in moved:  # one that is tied stays so
                            new = tensor.detach().to(device)
                            as_it_was = isinstance(tensor, nn.Parameter)
                            moved[id(tensor)] = nn.Parameter(new, requires_grad=False) if as_it_was else new
                        before.append((tensors, name, tensor))
                        tensors[name] = moved[id(tensor)]
        yield
    finally:
        for tensors, name, tensor in before:
            tensors[name] = tensor


def sharing(module: Module) -> Module:
    """A copy of a module on the same memory: parameters and buffers of its own, which can be replaced without
    the original noticing, but no weights of its own."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in module.parameters()}
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def owned(model: Module) -> Module:
    """A copy of a model, so that it can be changed and outlive what it was cut from. That of a placed one
    still reads the same files: its parameters can be replaced, not written to (see `working`)."""
    return copy.deepcopy(model) if placement_of(model) is None else sharing(model)


@contextmanager
def working(module: nn.Module, placement: Placement | None) -> Iterator[None]:
    """Have a module that shares its weights with another (`sharing`) work on the device on weights of its
    own, for as long as it takes to change them; then they are at home. Nothing without a placement."""
    if placement is None:
        yield
        return
    _replace(module, lambda tensor: tensor.to(placement.device, copy=True))
    yield
    send_home(module, placement)


def send_home(modules: Modules, placement: Placement | None) -> None:
    """Put the weights of modules (as in `resident`), changed in place, where those made of a placed model
    belong: on the CPU, in a file without a name where the placement says so. Nothing without a placement."""
    if placement is None:
        return
    if not placement.keep_weights:
        _replace(modules, lambda tensor: tensor.cpu())
        return
    held = {str(id(t)): t for m in holders(modules) for t in (*m._parameters.values(), *m._buffers.values())
            if t is not None}  # fmt: skip
    files = in_file(held, placement.folder) if held else {}
    _replace(modules, lambda tensor: files[str(id(tensor))])


def holders(modules: Modules) -> Iterable[nn.Module]:
    """The modules whose own tensors are meant."""
    return modules.modules() if isinstance(modules, nn.Module) else modules


def _replace(modules: Modules, change: Callable[[Tensor], Tensor]) -> None:
    """Change all parameters and buffers of modules; one that is tied stays so."""
    changed: dict[int, Tensor] = {}
    before = []  # kept until the end, for an address must not be used again
    for holder in holders(modules):
        for tensors in (holder._parameters, holder._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in changed:
                    new = change(tensor).detach()
                    is_weight = isinstance(tensor, nn.Parameter)
                    changed[id(tensor)] = nn.Parameter(new, requires_grad=False) if is_weight else new
                    before.append(tensor)
                tensors[name] = changed[id(tensor)]


Keep = Callable[[Iterable[Tensor]], Sequence[Tensor]]
"""Keeps batches of a stream; `list` keeps them as they are."""


class Filed(Sequence[Tensor]):
    """Batches in files, each brought to a device when it is asked for."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return Filed(self._tensors[index], self._device)
        return self._tensors[index].to(self._device)


def keeper(model: nn.Module) -> Keep:
    """How batches of the model's stream are kept: as they are, or, where the model is placed, in files from
    where they take more than the placement's room."""
    placement = placement_of(model)
    if placement is None:
        return list

    def keep(batches: Iterable[Tensor]) -> Sequence[Tensor]:
        kept: list[Tensor] = []
        filed, size = False, 0
        for batch in batches:
            size += batch.numel() * batch.itemsize
            if size > placement.room:
                if not filed:
                    kept = [_filed(each, placement.folder) for each in kept]
                    filed = True
                batch = _filed(batch, placement.folder)
            kept.append(batch)
        return Filed(kept, placement.device) if filed else kept

    return keep


def _filed(batch: Tensor, folder: Path) -> Tensor:
    return in_file({"batch": batch}, folder)["batch"]
