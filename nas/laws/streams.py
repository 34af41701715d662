"""Laws of the residual stream: its width, and the model taken apart along it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture
from nas.families import layers_of, shape_of
from nas.laws.case import (
    NARROWED,
    Case,
    check_equal,
    check_mattered,
    check_same,
    decoded,
    dynamic_cache,
    logits_of,
)
from nas.laws.masked import zeroed
from nas.repair.stream import Stream, attention_part, input_of, mlp_part
from nas.residual import measure_stream, permute_stream, rotate_stream
from nas.subnet import cut


def stream_moved(case: Case) -> None:
    """A permuted or rotated residual stream leaves the logits; or is refused, where the width is fixed."""
    parent, width = case.parent, case.shape.hidden
    order, basis = random_order(width), random_basis(width).to(case.device)
    if case.family.fixed_hidden:
        for refused in (
            lambda: cut(case.permuted, case.shape, Architecture(width // 2, case.shape.parent.blocks)),
            lambda: permute_stream(parent, order),
            lambda: rotate_stream(parent, basis),
            lambda: measure_stream(parent, case.ids),
        ):
            _check_refused(refused, "keep all hidden channels")
        return
    before = copy.deepcopy(parent.state_dict())
    ways = [permute_stream(parent, order)]
    if case.family.layout.attention_post:
        _check_refused(lambda: rotate_stream(parent, basis), "norms behind its modules")
    else:
        ways.append(rotate_stream(parent, basis))
    for way, model in zip(("permuted", "rotated"), ways, strict=False):
        moved = not torch.equal(model.get_input_embeddings().weight, parent.get_input_embeddings().weight)
        assert moved, f"the {way} stream is as it was"
        check_same(logits_of(model, case.ids), logits_of(parent, case.ids), f"logits of a {way} stream")
    for key, value in parent.state_dict().items():
        assert torch.equal(value, before[key]), f"moving the stream changed the parent's {key}"


def narrower_is_masked(case: Case) -> None:
    """With fewer hidden channels a subnet is the parent with the other channels zeroed, cached or not."""
    if case.family.fixed_hidden:
        return
    for kind in case.cuts:
        architecture = Architecture(NARROWED, case.cuts[kind].blocks)
        subnet = case.cut(kind, hidden=NARROWED)
        found = logits_of(subnet, case.ids)
        expected = logits_of(zeroed(case.permuted, case.shape, architecture), case.ids)
        what = f"logits of the cut {kind!r} with {NARROWED} hidden channels"
        check_same(found, expected, f"{what} and of the parent with the rest zeroed")
        check_mattered(found, logits_of(case.cut(kind), case.ids), f"a narrower stream in the cut {kind!r}")
        if kind in ("uniform", "all at once"):
            check_same(decoded(subnet, case.ids, dynamic_cache(subnet)), found, f"{what} with a cache and")


def unused_channels(case: Case) -> None:
    """Hidden channels, or directions, that the stream never uses are found and cut without a trace."""
    if case.family.fixed_hidden or case.family.layout.attention_post:
        return  # gains between a module and the stream lead out of any space
    width, windows = case.shape.hidden, case.tokens(4)
    channels = torch.eye(width, dtype=torch.float64, device=case.device)[:, 5 : 5 + NARROWED]
    parent = confined(case.parent, channels)
    order = measure_stream(parent, windows).order
    assert sorted(order[:NARROWED].tolist()) == list(range(5, 5 + NARROWED)), (
        f"channels 5 to {4 + NARROWED} are the only ones used, and the first in order are {order.tolist()}"
    )
    _check_traceless(case, parent, permute_stream(parent, order), "channels")
    parent = confined(case.parent, random_basis(width, seed=1).to(case.device)[:, :NARROWED])
    _check_traceless(case, parent, rotate_stream(parent, measure_stream(parent, windows).basis), "directions")


def stream_replayed(case: Case) -> None:
    """The stream taken apart into norms, modules and sums is the model's own, block by block."""
    parent, windows = case.permuted, case.tokens(5)
    stream = Stream(parent, windows, batch_size=2)
    check_equal(torch.cat([*stream.before(0)]), entry_of(parent, 0, windows), "streams in front of block 0")
    for index, layer in enumerate(layers_of(parent)):
        arguments, before = stream.arguments[index], stream.before(index)
        middle = [attention_part(layer, h, arguments) for h in before]
        behind = [mlp_part(layer, h, b) for h, b in zip(middle, before, strict=True)]
        check_same(
            torch.cat([*before]), entry_of(parent, index, windows),
            f"the stream taken apart and the model's own, in front of block {index},",
        )  # fmt: skip
        check_equal(torch.cat([*middle]), torch.cat([*stream.middle(index)]), f"the middles of block {index}")
        ends = torch.cat([*stream.before(index + 1)])
        check_equal(torch.cat([*behind]), ends, f"streams behind block {index}")
    check_same(
        torch.cat([*stream.before(case.shape.blocks)]), behind_last(parent, windows),
        "the stream taken apart and the model's own, behind the last block,",
    )  # fmt: skip


def entry_of(model: PreTrainedModel, block: int, windows: Tensor) -> Tensor:
    """The model's own stream in front of a block."""
    module = layers_of(model)[block].module
    return input_of(module, lambda ids: model.base_model(ids, use_cache=False), windows)


def behind_last(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """The model's own stream behind the last block."""
    caught: list[Tensor] = []
    hook = layers_of(model)[-1].module.register_forward_hook(
        lambda _, args, output: caught.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        model.base_model(windows, use_cache=False)
    finally:
        hook.remove()
    return caught[0]


def random_order(width: int) -> Tensor:
    """(width,)."""
    return torch.randperm(width, generator=torch.Generator().manual_seed(0))


def random_basis(width: int, seed: int = 0) -> Tensor:
    """Orthogonal, in float64, (width, width)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64)).Q


def confined(parent: PreTrainedModel, basis: Tensor) -> PreTrainedModel:
    """A copy of the parent whose stream stays in the space of the columns of `basis` (hidden, rank)."""
    model = copy.deepcopy(parent)
    project = (basis @ basis.T).float()
    embedding = model.get_input_embeddings().weight
    embedding.copy_(embedding @ project)
    for block in layers_of(model):
        if block.layout.experts:
            block.mlp.experts.down_proj.copy_(project @ block.mlp.experts.down_proj)
        for writer in (block.o_proj,) if block.layout.experts else (block.o_proj, block.down_proj):
            writer.weight.copy_(project @ writer.weight)
            if writer.bias is not None:
                writer.bias.copy_(project @ writer.bias)
    return model


def _check_traceless(case: Case, parent: PreTrainedModel, moved: PreTrainedModel, what: str) -> None:
    shape = shape_of(moved)
    subnet = cut(moved, shape, Architecture(NARROWED, shape.parent.blocks))
    check_same(logits_of(subnet, case.ids), logits_of(parent, case.ids), f"logits without the unused {what}")


def _check_refused(run: object, words: str) -> None:
    try:
        run()  # type: ignore[operator]
    except InputError as error:
        assert words in str(error), f"what cannot be done is refused with {str(error)!r}, without {words!r}"
        return
    raise AssertionError(f"what cannot be done is not refused with {words!r}")
