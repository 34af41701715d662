"""What a subnet costs to make and to evaluate: as views of the parent, extracted, masked, or a pruned copy.

One subnet with half of the parent's FLOPs is evaluated in every form, in turn, on one batch of text after
another. The same weights must give the same score in each, or the comparison is refused.

- views against an extracted copy: what sharing the parent's storage costs at run time (wanted at most 1.10)
- half of the FLOPs against the parent: whether fewer FLOPs are less time (wanted at most 0.60 at 0.50)
- the two ways of others: hooks that zero units of the whole parent, and a deep copy pruned in place
- one cut in milliseconds, over architectures drawn at random, and the bytes of weights it copies: none with
  the repair bank, and without it the query rows of groups that keep fewer than all of their queries

    python -m benchmarks.subnets
    python -m benchmarks.subnets --parent ORGANISATION/MODEL --corpus Salesforce/wikitext:wikitext-2-raw-v1
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks._setup import Common, Ready, in_turn, make_ready, ratio, show
from data.errors import InputError
from experiments.command_line import option, run
from nas.architecture import Architecture
from nas.evaluate import evaluate
from nas.families import MLP, layers_of
from nas.modeling_subnet import set_config, set_heads, skip_attention, skip_mlp
from nas.proposals import fit
from nas.repair.bank import Bank
from nas.sampling import starts
from nas.shape import Shape, architecture_of
from nas.subnet import cut, depth_settings, kept_query_rows


@dataclass(frozen=True)
class Settings(Common):
    """What is measured."""

    flops: float = option(0.5, "kept fraction of the parent's FLOPs, head included", group="input")
    cuts: int = option(50, "architectures that are cut for timing", group="run")


def main(settings: Settings) -> None:
    """Measure and print."""
    ready = make_ready(settings)
    check_dense(ready.shape)
    rng = np.random.default_rng(settings.seed)
    budget = ready.budget("flops", settings.flops)
    rows = fit(ready.space, budget, rng.integers(0, ready.space.depths, (64, len(ready.space.depths))), rng)
    structured = ready.space.widths(starts(ready.space, budget, rng, ready.hints))
    # Different widths in every block, all queries kept: nothing in it needs a copy.
    uneven = structured[(structured != structured[:, :1]).any((1, 2)) & (structured[..., :2] > 0).all((1, 2))]
    full = uneven[(uneven[..., 1] == ready.shape.queries_per_group).all(1)]
    subnet = architecture_of((full if len(full) else structured)[0], ready.shape)
    kept = ready.cost(subnet)["flops"] / ready.cost(ready.shape.parent)["flops"]
    print(
        f"{settings.parent}: {len(subnet.blocks)} blocks, {kept:.3f} of the FLOPs; "
        f"{len(ready.eval_windows)} windows of {settings.seq_len} tokens, batches of {settings.batch_size}, "
        f"{settings.threads} thread(s), medians of {settings.repeats}"
    )
    forms(settings, ready, subnet)
    cutting(settings, ready, [architecture_of(row, ready.shape) for row in ready.space.widths(rows)])


def check_dense(shape: Shape) -> None:
    """Raise `InputError` for a mixture of experts, whose units no mask here stands in front of."""
    if shape.experts_per_token:
        raise InputError(
            f"masks and copies are made of FFN channels here, and {shape.family} has {shape.ffn} experts in "
            "their place; give a parent without"
        )


def forms(settings: Settings, ready: Ready, subnet: Architecture) -> None:
    """Evaluate one subnet in every form, in turn."""
    parent, shape, bank = ready.parent, ready.shape, ready.prepared.bank
    score: Callable[[PreTrainedModel], float] = lambda model: (  # noqa: E731
        evaluate(model, ready.eval_windows, batch_size=settings.batch_size).nll
    )
    views, repaired = cut(parent, shape, subnet), cut(parent, shape, subnet, bank)
    copies, own = cut(parent, shape, subnet, own=True), cut(parent, shape, subnet, bank, own=True)
    for model in (copies, own):
        if fresh_bytes(model, parent, bank) != bytes_of(tensors(model)):
            raise AssertionError("the extracted copy shares storage with the parent")
    ids = ready.eval_windows[: settings.batch_size].to(parent.device)

    @torch.no_grad()
    def forward(model: PreTrainedModel) -> None:
        model(ids, use_cache=False)

    def masking() -> float:
        with masked(parent, shape, subnet):
            return score(parent)

    actions: dict[str, Callable[[], float]] = {
        "parent": lambda: score(parent),
        "views": lambda: score(views),
        "extracted copy": lambda: score(copies),
        "views, repaired": lambda: score(repaired),
        "extracted copy, repaired": lambda: score(own),
        "cut and views": lambda: score(cut(parent, shape, subnet)),
        "masks on the parent": masking,
        "deep copy, pruned": lambda: score(deepcopy_and_prune(parent, shape, subnet)),
    }
    wanted = actions["views"]()
    for name in ("extracted copy", "cut and views", "masks on the parent", "deep copy, pruned"):
        if abs(actions[name]() - wanted) > 1e-3 * abs(wanted):
            raise AssertionError(f"{name} scores {actions[name]()}, not {wanted}: not the same subnet")
    seconds = in_turn(actions, settings.repeats)
    alone = in_turn(
        {"parent": partial(forward, parent), "views": partial(forward, views)}, 4 * settings.repeats
    )

    def line(what: str, over: str, under: str, limit: str = "") -> list[str]:
        return [
            what,
            f"{1e3 * median(seconds[over]):.1f}",
            f"{1e3 * median(seconds[under]):.1f}",
            f"{ratio(seconds[over], seconds[under]):.3f}",
            limit,
        ]

    show(
        "Evaluation, milliseconds",
        [
            ["", "first", "second", "ratio", "wanted"],
            line("views / extracted copy", "views", "extracted copy", "<= 1.10"),
            line("the same, repaired", "views, repaired", "extracted copy, repaired", "<= 1.10"),
            line("half of the FLOPs / parent", "views", "parent", "<= 0.60"),
            line("the same, repaired", "views, repaired", "parent", "<= 0.60"),
            [
                "the same, one forward pass",
                f"{1e3 * median(alone['views']):.1f}",
                f"{1e3 * median(alone['parent']):.1f}",
                f"{ratio(alone['views'], alone['parent']):.3f}",
                "",
            ],
            line("masks on the parent / cut and views", "masks on the parent", "cut and views"),
            line("deep copy, pruned / cut and views", "deep copy, pruned", "cut and views"),
        ],
    )


def cutting(settings: Settings, ready: Ready, architectures: list[Architecture]) -> None:
    """Milliseconds and bytes of one cut."""
    parent, shape, bank = ready.parent, ready.shape, ready.prepared.bank
    turns = [architectures[i % len(architectures)] for i in range(settings.cuts)]
    views = [in_turn({"cut": partial(cut, parent, shape, each, bank)}, 1)["cut"][0] for each in turns]
    pruned = [
        in_turn({"copy": partial(deepcopy_and_prune, parent, shape, each)}, 1)["copy"][0]
        for each in turns[: max(5, settings.cuts // 5)]
    ]
    banks = {"with the bank": bank, "without": None}
    copied = {
        name: max(fresh_bytes(cut(parent, shape, each, own), parent, bank) for each in architectures)
        for name, own in banks.items()
    }
    rows = [
        ["", "value", "wanted"],
        ["one cut, ms, median", f"{1e3 * median(views):.2f}", "milliseconds"],
        ["one cut, ms, slowest", f"{1e3 * max(views):.2f}", ""],
        ["one deep copy, pruned, ms, median", f"{1e3 * median(pruned):.2f}", ""],
        *(
            [f"bytes copied, {name}, at most", f"{most:,}", "" if name == "without" else "0"]
            for name, most in copied.items()
        ),
        ["bytes copied by a deep copy", f"{bytes_of(tensors(parent)):,}", ""],
    ]
    show("Cutting", rows)


def tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


def bytes_of(some: list[Tensor]) -> int:
    """Bytes of their elements, shared storage counted once."""
    return sum({t.untyped_storage().data_ptr(): t.numel() * t.itemsize for t in some}.values())


def fresh_bytes(model: nn.Module, parent: PreTrainedModel, bank: Bank) -> int:
    """Bytes of the tensors of `model` that lie in no storage of the parent or of the bank."""
    sources = [*tensors(parent), *bank.matrices.values()]
    shared = {tensor.untyped_storage().data_ptr() for tensor in sources}
    return bytes_of([t for t in tensors(model) if t.untyped_storage().data_ptr() not in shared])


@contextmanager
def masked(parent: PreTrainedModel, shape: Shape, architecture: Architecture) -> Iterator[None]:
    """Hooks that zero the dropped units in front of every output matrix of the parent."""
    blocks = {block.source: block for block in architecture.blocks}
    handles = []

    def multiply(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return lambda _, args: (args[0] * mask,)

    for index, layer in enumerate(layers_of(parent)):
        heads = torch.zeros(shape.kv_groups * shape.queries_per_group * shape.head_dim)
        channels = torch.zeros(shape.ffn)
        if index in blocks:
            heads[kept_query_rows(shape, blocks[index], heads.device)] = 1
            channels[: blocks[index].ffn] = 1
        for linear, mask in ((layer.o_proj, heads), (layer.down_proj, channels)):
            hook = multiply(mask.to(parent.device, parent.dtype))
            handles.append(linear.register_forward_pre_hook(hook))
            if not mask.any():
                handles.append(linear.register_forward_hook(lambda _, __, output: output * 0))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def deepcopy_and_prune(parent: PreTrainedModel, shape: Shape, architecture: Architecture) -> PreTrainedModel:
    """A copy of the whole parent whose weights are then sliced down, block by block."""
    model = copy.deepcopy(parent)
    for name, value in depth_settings(parent.config, architecture).items():
        setattr(model.config, name, value)
    layers = layers_of(model)
    layout = layers[0].layout
    kept = [layers[block.source] for block in architecture.blocks]
    for slot, (block, layer) in enumerate(zip(architecture.blocks, kept, strict=True)):
        attention = layer.attention
        kv = torch.arange(block.kv_groups * shape.head_dim, device=parent.device)
        inner = kept_query_rows(shape, block, parent.device)
        channels = torch.arange(block.ffn, device=parent.device)
        if block.kv_groups:
            setattr(attention, layout.slot, slot)
            set_heads(attention, block.kv_groups, block.queries_per_group, shape.head_dim)
            if layout.alibi:
                attention.heads = attention.heads[inner[:: shape.head_dim] // shape.head_dim]
            for linear, rows in ((layer.q_proj, inner), (layer.k_proj, kv), (layer.v_proj, kv)):
                prune_linear(linear, rows, 0)
            prune_linear(layer.o_proj, inner, 1)
        else:
            skip_attention(layer.module, layout)
        if block.ffn:
            for linear in layer.inputs(MLP):
                prune_linear(linear, channels, 0)
            prune_linear(layer.down_proj, channels, 1)
        else:
            skip_mlp(layer.module, layout)
        set_config(layer.module, model.config, layout, block.heads)
    model.set_submodule(layout.layers, nn.ModuleList(layer.module for layer in kept))
    return model


def prune_linear(linear: nn.Linear, index: Tensor, dim: int) -> None:
    """Keep some rows (dim 0) or columns (dim 1) of a projection, in place."""
    linear.weight.data = linear.weight.data.index_select(dim, index)
    if dim == 0 and linear.bias is not None:
        linear.bias.data = linear.bias.data[index]
    linear.out_features, linear.in_features = linear.weight.shape


if __name__ == "__main__":
    sys.exit(run(Settings, main))
