"""What is computed of each block before any search, block by block, each in a file of its own.

One walk over the blocks: all calibration windows go through a block while its statistics are summed, its
units are ranked, its output matrices repaired for every choice, and all that is written before the next block
is looked at. So the memory is that of one block's statistics, and what was finished before an interruption is
only run through again. Workers that share the folder share the blocks: of another's one only the stream is
made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from data.errors import InputError
from nas.alone import alone, unless_taken
from nas.blockwise import entry
from nas.evidence import BlockEvidence, Evidence
from nas.families import Layer, layers_of
from nas.importance import Criterion
from nas.placement import Keep, Placement, device_of, keeper, placement_of, resident, sharing
from nas.ranking import head_columns, ranking_of, reorder_channels, reorder_heads
from nas.repair.bank import repair_layer
from nas.shape import Shape
from nas.space import SearchSpace
from nas.tensor_files import in_file, read_tensors, write_tensors

KINDS = ("groups", "queries", "channels")


def choices_of_block(space: SearchSpace, block: int) -> tuple[dict[int, tuple[int, ...]], tuple[int, ...]]:
    """What a bank must hold of a block: KV groups by queries per group, and FFN widths, without the skips."""
    groups = tuple(g for g in space.knobs[f"{block}.kv_groups"] if g)
    heads = {queries: groups for queries in space.knobs[f"{block}.queries_per_group"]}
    return heads, tuple(width for width in space.knobs[f"{block}.ffn"] if width)


@torch.no_grad()
def fill(
    parent: PreTrainedModel,
    shape: Shape,
    space: SearchSpace,
    windows: Tensor,
    criterion: Criterion,
    folder: Path,
    *,
    batch_size: int,
    seed: int,
    quiet: bool,
) -> None:
    """Have the file of every block in `folder` (see `read`), of which those that are there are kept, and
    those that others are making are waited for.

    Each holds the block's orders (`order.KIND`), its `influence`, its bank (`matrix.KEY`, `error.KEY`).
    Raises `InputError` where the parent is placed and the criterion needs gradients of the whole.
    """
    missing = missing_of(folder, shape)
    if not missing:
        return
    placement = placement_of(parent)
    if placement is not None and criterion.gradients:
        raise InputError(
            "this ranking needs gradients of the whole parent, which is on its device block by block; choose "
            "elimination, output_energy, wanda, obs or another without gradients, or give --parent-on device"
        )
    whole = Evidence(parent, shape, windows, batch_size, seed)
    device, keep, layers = device_of(parent), keeper(parent), layers_of(parent)
    while missing:
        states, calls = entry(parent, windows, batch_size)
        last = missing[-1] + 1
        for block in tqdm(range(last), desc="rank and repair", unit="block", disable=quiet, leave=False):
            module, path = layers[block].module, folder / f"{block}.safetensors"
            run = _Run(partial(calls[block], module), states, keep)
            with resident(module, device):
                if block in missing:
                    seen = BlockEvidence(
                        parent, shape, windows, batch_size, seed, block=block, run=run,
                        whole=lambda: whole.gradients,
                    )  # fmt: skip
                    with unless_taken(path) as mine:
                        if mine and read(folder, block) is None:
                            write_tensors(path, _of_block(seen, criterion, space, placement))
                if block + 1 < last:
                    if not run.behind:
                        run()
                    states = run.behind
        for block in missing_of(folder, shape):
            with alone(folder / f"{block}.safetensors"):
                pass  # who was making it has ended, or died: then it is made here
        missing = missing_of(folder, shape)


def missing_of(folder: Path, shape: Shape) -> list[int]:
    """The blocks that have no file, or a damaged one."""
    return [block for block in range(shape.blocks) if read(folder, block) is None]


class _Run:
    """Sends the stream through a block, as often as it is called; `behind` is what came out, once it has."""

    def __init__(self, block: Callable[[Tensor], Tensor], states: Sequence[Tensor], keep: Keep) -> None:
        self._block, self._states, self._keep = block, states, keep
        self.behind: Sequence[Tensor] = ()

    def __call__(self) -> None:
        if self.behind:
            for h in self._states:
                self._block(h)
        else:
            self.behind = self._keep(self._block(h) for h in self._states)


def read(folder: Path, block: int) -> dict[str, Tensor] | None:
    """The tensors of a block, memory-mapped; None if there are none or the file is damaged."""
    return read_tensors(folder / f"{block}.safetensors")


def _of_block(
    evidence: BlockEvidence, criterion: Criterion, space: SearchSpace, placement: Placement | None
) -> dict[str, Tensor]:
    """What is kept of a block that is on its device."""
    shape, block = evidence.shape, evidence.block
    scores = criterion(evidence, block)
    ranking = ranking_of([scores])
    stored = {f"order.{kind}": getattr(ranking, kind)[0].cpu() for kind in KINDS}
    statistics = evidence.statistics
    stored["influence"] = torch.tensor(statistics.influence[block], dtype=torch.float64)
    layer = layers_of(evidence.parent)[block]
    device = layer.o_proj.weight.device
    orders = [stored[f"order.{kind}"].to(device) for kind in KINDS]
    permuted = permuted_layer(layer, shape, stored)
    rows, _ = head_columns(shape, orders[0], orders[1])
    attention = statistics.attention_gram[block][rows][:, rows]
    ffn = statistics.ffn_gram[block][orders[2]][:, orders[2]]
    for kind in ("statistics", "activity"):  # their memory is needed
        evidence.__dict__.pop(kind, None)
    del statistics

    def put(matrix: Tensor) -> Tensor:
        return matrix.cpu() if placement is None else in_file({"matrix": matrix}, placement.folder)["matrix"]

    heads, widths = choices_of_block(space, block)
    bank = repair_layer(permuted, shape, attention, ffn, block, heads, widths, put)
    stored |= {f"matrix.{name}": matrix.contiguous() for name, matrix in bank.matrices.items()}
    stored |= {f"error.{name}": torch.tensor(value) for name, value in bank.errors.items()}
    return stored


def permuted_layer(layer: Layer, shape: Shape, stored: Mapping[str, Tensor]) -> Layer:
    """A copy of a block with its units in the stored order, which shares with it what has no order."""
    device = layer.o_proj.weight.device
    groups, queries, channels = (stored[f"order.{kind}"].to(device) for kind in KINDS)
    new = Layer(sharing(layer.module), layer.layout)
    reorder_heads(new, shape, groups, queries)
    reorder_channels(new, channels)
    return new


@torch.no_grad()
def permuted_in_files(parent: PreTrainedModel, shape: Shape, folder: Path) -> PreTrainedModel:
    """The permuted parent of a placed one, its blocks memory-mapped from files in `folder`, which are written
    block by block where they are not there yet; embeddings, final norm and head are the parent's own."""
    device, new = device_of(parent), sharing(parent)
    for block, (layer, permuted) in enumerate(zip(layers_of(parent), layers_of(new), strict=True)):
        path = folder / f"{block}.weights.safetensors"
        weights = read_tensors(path)
        if weights is None:
            stored = read(folder, block)
            assert stored is not None
            with resident(layer.module, device):
                write_tensors(path, tensors_of(permuted_layer(layer, shape, stored).module))
            weights = read_tensors(path) or {}
        for name, tensor in weights.items():
            _set(permuted.module, name, tensor)
    return new


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module this tensor in the place of the one it has."""
    *path, last = name.split(".")
    holder = module.get_submodule(".".join(path))
    if last in holder._parameters:
        holder._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        holder._buffers[last] = tensor
