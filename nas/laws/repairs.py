"""Laws of repair in closed form: what it minimises never rises, and nothing else changes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from nas.architecture import Block
from nas.families import layers_of
from nas.laws.case import Case, logits_of
from nas.laws.streams import behind_last
from nas.linear import damped
from nas.repair.bank import attention_key, mlp_key
from nas.repair.sequential import repair_front_to_back
from nas.subnet import cut, kept_query_rows


def one_pass(case: Case) -> None:
    """A matrix repaired in one pass never has a larger calibration error than the cut one, and its stated
    error is the measured one."""
    shape, statistics, bank = case.shape, case.statistics, case.bank
    for index, layer in enumerate(layers_of(case.permuted)):
        out, gram = layer.o_proj.weight, statistics.attention_gram[index]
        for groups in range(1, shape.kv_groups + 1):
            for queries in range(1, shape.queries_per_group + 1):
                kept = kept_query_rows(shape, Block(index, groups, queries, 0), out.device)
                stated = bank.errors[attention_key(index, groups, queries)]
                where = f"{groups} groups of {queries} queries in block {index}"
                _check_repaired(out, gram, bank.attention(index, groups, queries), kept, stated, where)
        if layer.layout.experts:
            continue  # experts have no repaired matrices
        down, gram = layer.down_proj.weight, statistics.ffn_gram[index]
        for width in range(1, shape.ffn + 1):
            stated, kept = bank.errors[mlp_key(index, width)], torch.arange(width)
            _check_repaired(
                down, gram, bank.mlp(index, width), kept, stated, f"{width} channels in block {index}"
            )


def bank_is_view(case: Case) -> None:
    """A cut with repaired matrices takes them, and all else, as they are: nothing is copied."""
    parent, bank = case.permuted, case.bank
    there = {weight.untyped_storage().data_ptr() for weight in parent.parameters()}
    there |= {matrix.untyped_storage().data_ptr() for matrix in bank.matrices.values()}
    for kind, architecture in case.cuts.items():
        subnet = cut(parent, case.shape, architecture, bank)
        for key, weight in subnet.named_parameters():
            assert weight.untyped_storage().data_ptr() in there, f"{key} of the cut {kind!r} is a copy"
        for block, layer in zip(architecture.blocks, layers_of(subnet), strict=True):
            if block.kv_groups:
                entry = bank.attention(block.source, block.kv_groups, block.queries_per_group)
                _check_taken(layer.o_proj.weight, entry, f"o_proj of the cut {kind!r}")
            if block.ffn and not layer.layout.experts:
                entry = bank.mlp(block.source, block.ffn)
                _check_taken(layer.down_proj.weight, entry, f"down_proj of the cut {kind!r}")


def front_to_back(case: Case) -> None:
    """Repair front to back leaves a whole parent its logits, and a subnet's stream no further from the dense
    one than one pass does, where that is what it minimises; parent and matrices stay as they were."""
    parent, shape, bank, windows = case.permuted, case.shape, case.bank, case.windows
    given = [*parent.state_dict().items(), *bank.matrices.items()]
    before = copy.deepcopy(dict(given))
    whole = repair_front_to_back(parent, shape, shape.parent, bank, case.stream)
    expected = logits_of(parent, case.ids)
    off = float((logits_of(whole, case.ids) - expected).abs().max() / expected.abs().max())
    assert off <= 1e-3, f"repairing the whole parent moves its logits by {off:.3g} of the largest"
    dense, lay = behind_last(parent, windows), case.family.layout
    minimised = not (lay.experts or lay.attention_post or lay.mlp_post)
    others = {value.untyped_storage().data_ptr() for _, value in given}
    for kind, architecture in case.cuts.items():
        told: list[int] = []
        subnet = repair_front_to_back(parent, shape, architecture, bank, case.stream, progress=told.append)
        blocks = len(architecture.blocks)
        assert sum(told) == blocks, f"of {blocks} blocks of the cut {kind!r}, repair tells of {sum(told)}"
        for key, weight in subnet.named_parameters():
            assert weight.untyped_storage().data_ptr() not in others, (
                f"{key} of the repaired cut {kind!r} is the parent's or the bank's own"
            )
        found = behind_last(subnet, windows)
        assert bool(torch.isfinite(found).all()), f"the repaired cut {kind!r} has no finite stream"
        twice = float((found - dense).square().mean())
        once = float((behind_last(cut(parent, shape, architecture, bank), windows) - dense).square().mean())
        assert not minimised or twice <= once, (
            f"the stream of the cut {kind!r} is {twice:.4g} from the dense one (mean square) when repaired "
            f"front to back, and {once:.4g} in one pass"
        )
    for key, value in given:
        assert torch.equal(value, before[key]), f"repair changed the parent's {key}"
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parent.modules())
    assert hooks == 0, f"repair left {hooks} hooks in the parent"


def _check_repaired(
    weight: Tensor, gram: Tensor, repaired: Tensor, kept: Tensor, stated: float, where: str
) -> None:
    before, after = _error(weight, gram, weight[:, kept], kept), _error(weight, gram, repaired, kept)
    assert after <= before + 1e-9, (
        f"repaired, {where} have an error of {after:.4g}, cut alone one of {before:.4g}"
    )
    soft = damped(gram)
    measured = _error(weight, soft, repaired, kept) / _error(weight, soft, weight[:, :0], kept[:0])
    assert abs(stated - measured) <= 1e-5, (
        f"{where} are said to leave {stated:.5f} of the output's mean square, and leave {measured:.5f}"
    )


def _error(weight: Tensor, gram: Tensor, other: Tensor, columns: Tensor) -> float:
    """Mean squared difference of the outputs of `weight` and of `other` on some of its columns."""
    lost = weight.double().clone()
    lost[:, columns] -= other.double()
    return float((lost @ gram * lost).sum())


def _check_taken(weight: Tensor, entry: Tensor, what: str) -> None:
    assert weight.data_ptr() == entry.data_ptr(), f"{what} is not the repaired matrix itself"
