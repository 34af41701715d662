"""Laws of the cut: a subnet is the parent without the dropped units, and costs the parent nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel

from nas.cost import CostModel
from nas.families import blocks_of, layers_of, native_state, plain
from nas.families.shapes import count
from nas.laws.case import (
    NARROWED,
    Case,
    check_equal,
    check_mattered,
    check_same,
    decoded,
    dynamic_cache,
    logits_of,
    static_cache,
)
from nas.laws.masked import zeroed
from nas.laws.tiny import random_ranking, random_tokens
from nas.ranking import permute
from nas.subnet import cut

SHORT = 4
"""Tokens of a text that every sliding window of a tiny parent holds whole."""


def layout(case: Case) -> None:
    """The model has the modules that its family's entry names, and no parameters in its blocks but theirs."""
    shape, parent = case.shape, case.parent
    found = count([parent])
    closed = CostModel(shape, 8, 4)(shape.parent)["parameters"]
    assert closed == found, (
        f"the parts that the family's entry names have {closed} parameters with embeddings and head, and the "
        f"parent has {found}; a norm or a projection is not named, or is named twice"
    )
    for index, layer in enumerate(layers_of(parent)):
        own = {id(p) for _, linear in layer.projections() for p in linear.parameters()}
        matrices = [name for name, p in layer.module.named_parameters() if p.dim() == 2 and id(p) not in own]
        if not layer.layout.experts:
            assert not matrices, f"block {index} has matrices that no unit owns: {', '.join(matrices)}"


def plain_projections(case: Case) -> None:
    """Taking fused and transposed projections apart keeps the logits, and gives back the family's tensors."""
    expected = case.native.state_dict()
    check_same(
        logits_of(case.parent, case.ids), logits_of(case.native, case.ids), "logits of plain projections"
    )
    found = native_state(case.parent)
    extra, lost = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    known = [name for name in extra if name.endswith(".heads")]  # noted beside ALiBi's attentions
    assert extra == known and not lost, f"native_state has {extra} more and lacks {lost}"
    for name, tensor in expected.items():
        check_equal(found[name], tensor, f"{name} of native_state and of the family")
    for layer in layers_of(plain(case.parent)):
        for name, linear in layer.projections():
            assert type(linear) is torch.nn.Linear, f"{name} is a {type(linear).__name__}"


def permutation(case: Case) -> None:
    """A permuted parent has the parent's logits."""
    before, parent = _copied(case.parent), case.parent
    permuted = permute(parent, case.shape, random_ranking(case.shape, seed=1))
    moved = [
        not torch.equal(new.projection(name).weight, old.projection(name).weight)
        for new, old in zip(layers_of(permuted), layers_of(parent), strict=True)
        for name in ("o_proj",)
    ]
    assert any(moved), "the permutation moved nothing"
    check_same(logits_of(permuted, case.ids), logits_of(parent, case.ids), "logits of the permuted parent")
    _check_untouched(parent, before, "permuting")


def keep_everything(case: Case) -> None:
    """The subnet that keeps everything has the parent's logits bit for bit."""
    subnet = cut(case.permuted, case.shape, case.shape.parent)
    check_equal(
        logits_of(subnet, case.ids),
        logits_of(case.permuted, case.ids),
        "logits of the parent and of all of it kept",
    )


def cut_is_masked(case: Case) -> None:
    """A subnet's logits are the parent's with the dropped units zeroed."""
    whole = logits_of(case.permuted, case.ids)
    for kind, architecture in case.cuts.items():
        found = logits_of(case.cut(kind), case.ids)
        expected = logits_of(zeroed(case.permuted, case.shape, architecture), case.ids)
        check_same(found, expected, f"logits of the cut {kind!r} and of the parent with the rest zeroed")
        check_mattered(found, whole, f"the cut {kind!r}")


def parent_untouched(case: Case) -> None:
    """Cutting, and running what was cut, leaves the parent as it was."""
    parent = case.permuted
    before, settings, logits = _copied(parent), parent.config.to_dict(), logits_of(parent, case.ids)
    for kind in case.cuts:
        for own in (False, True):
            _generate(case.cut(kind, own=own), case.ids, tokens=2)
    assert parent.config.to_dict() == settings, "cutting changed the parent's configuration"
    check_equal(logits_of(parent, case.ids), logits, "logits of the parent before and after cutting")
    _check_untouched(parent, before, "cutting")


def views(case: Case) -> None:
    """A cut copies nothing but gathered query rows, an owned one shares nothing; both have equal logits."""
    parent, shape = case.permuted, case.shape
    there = {weight.untyped_storage().data_ptr() for weight in parent.parameters()}
    tied = _is_tied(parent)
    for kind, architecture in case.cuts.items():
        view, own = case.cut(kind), case.cut(kind, own=True)
        gathered = set()
        for block, layer in zip(architecture.blocks, layers_of(view), strict=True):
            if 0 < block.queries_per_group < shape.queries_per_group:
                gathered |= {id(p) for p in layer.q_proj.parameters()} | {id(layer.o_proj.weight)}
        for key, weight in view.named_parameters():
            assert id(weight) in gathered or weight.untyped_storage().data_ptr() in there, (
                f"{key} of the cut {kind!r} is a copy, and should be a view of the parent's"
            )
        for key, weight in own.named_parameters():
            alone = weight.untyped_storage()
            assert alone.data_ptr() not in there, f"{key} of the owned cut {kind!r} is the parent's memory"
            assert alone.nbytes() == weight.nbytes, (
                f"{key} of the owned cut {kind!r} holds {alone.nbytes()} bytes for {weight.nbytes}"
            )
        check_equal(
            logits_of(view, case.ids), logits_of(own, case.ids), f"logits of view and copy, cut {kind!r},"
        )
        assert _is_tied(own) == tied, (
            f"the head of the owned cut {kind!r} is tied: {not tied}; parent: {tied}"
        )


def cache(case: Case) -> None:
    """Decoding token by token with a cache gives the logits without, and `generate` the same tokens."""
    kinds = [dynamic_cache, lambda _: DynamicCache()]
    if case.takes_static_cache:
        kinds.append(static_cache)
    for kind in case.cuts:
        subnet = case.cut(kind)
        whole = logits_of(subnet, case.ids, use_cache=False)
        for make in kinds:
            store = make(subnet)
            found = decoded(subnet, case.ids, store)
            check_same(found, whole, f"logits with a {type(store).__name__} and without, cut {kind!r},")
        with_cache, without = (_generate(subnet, case.ids, tokens=6, use_cache=use) for use in (True, False))
        assert torch.equal(with_cache, without), (
            f"the cut {kind!r} generates {with_cache.tolist()} with a cache and {without.tolist()} without"
        )


def costs(case: Case) -> None:
    """Parameters, FLOPs and KV-cache bytes in closed form are those counted on the cut model."""
    whole = CostModel(case.shape, SHORT, 4)
    widths = [case.shape.hidden]
    if not case.family.fixed_hidden:
        # Mixtures of experts are multiplied by a kernel that wants multiples of 16 bytes.
        widths.append(NARROWED if case.shape.experts_per_token else NARROWED - 1)
    for hidden in widths:
        for kind, architecture in case.cuts.items():
            narrowed = type(architecture)(hidden, architecture.blocks)
            found, expected = whole(narrowed), counted(case.cut(kind, hidden=hidden), SHORT)
            assert found == expected, (
                f"the cut {kind!r} with {hidden} hidden channels costs {found} in closed form and "
                f"{expected} counted"
            )


def counted(subnet: PreTrainedModel, length: int) -> dict[str, int]:
    """What a subnet costs on a text of this length, by counting."""
    # The counter knows neither the CPU's fused attention nor its kernel for experts.
    subnet.config._attn_implementation = subnet.config._experts_implementation = "eager"
    store = DynamicCache(config=subnet.config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ids = random_tokens(subnet.config.vocab_size, length, batch=1)
        subnet(ids.to(subnet.device), past_key_values=store)
    # Older versions of Transformers multiply matrices to get the angles of positions, newer ones do not.
    of_positions = sum(
        sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if name.endswith(".rotary_emb")
    )
    return {
        "block_parameters": sum(weight.numel() for weight in blocks_of(subnet).parameters()),
        "parameters": sum(weight.numel() for weight in subnet.parameters()),
        "flops": counter.get_total_flops() - of_positions,
        "kv_cache_bytes": sum(
            layer.keys.nbytes + layer.values.nbytes for layer in store.layers if layer.is_initialized
        ),
    }


def _generate(model: PreTrainedModel, ids: Tensor, tokens: int, **more: Any) -> Tensor:
    """The likeliest tokens behind some texts."""
    settings: dict[str, Any] = dict(do_sample=False, eos_token_id=None, pad_token_id=0, **more)
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **settings)


def _copied(model: PreTrainedModel) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def _check_untouched(model: PreTrainedModel, before: dict[str, Tensor], doing: str) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"{doing} changed the parent's {key}"


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight
