"""Heads can be kept in part: some of their rotary pairs, each with the frequency it always had."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache, dynamic_module_utils

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.cost import CostModel
from nas.export import save_checkpoint
from nas.families import Layer, family_of, layers_of, shape_of
from nas.laws.case import decoded
from nas.laws.cutting import counted
from nas.laws.masked import zeroed
from nas.laws.saving import load
from nas.modeling_subnet import narrow
from nas.rotary import rotary_scores
from nas.shape import Shape, head_widths_of, widths_of
from nas.subnet import cut
from tests.nas.test_export import logits_elsewhere
from tests.nas.tiny_models import (
    CUTS,
    PARENTS,
    WINDOW,
    architecture_of_cut,
    config_of,
    permuted_parent,
    same,
    tiny_parent,
    tokens,
)

NARROW = [name for name in PARENTS if family_of(config_of(name)).narrow_heads]
every_parent = pytest.mark.parametrize("name", NARROW)
every_cut = pytest.mark.parametrize("kind", CUTS)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    with torch.no_grad():
        yield


def random_orders(shape: Shape, seed: int = 0) -> list[Tensor]:
    """Another order of rotary pairs in every KV group of every block."""
    draw = torch.Generator().manual_seed(seed)

    def order() -> Tensor:
        return torch.randperm(shape.head_dim // 2, generator=draw)

    return [torch.stack([order() for _ in range(shape.kv_groups)]) for _ in range(shape.blocks)]


def narrower(kind: str, shape: Shape, width: int | None = None) -> Architecture:
    """A cut whose heads are narrow too: all of this width, or the even blocks' 2 and the others' whole."""
    architecture = architecture_of_cut(kind, shape)
    return replace(
        architecture,
        blocks=tuple(
            replace(block, head_width=width or 2)
            if block.kv_groups and (width or block.source % 2 == 0)
            else block
            for block in architecture.blocks
        ),
    )


def zeroed_heads(
    parent: PreTrainedModel, shape: Shape, architecture: Architecture, orders: list[Tensor]
) -> PreTrainedModel:
    """The whole parent with the rest at zero: inside heads, the rows of q, k and v and the columns of o."""
    model = zeroed(parent, shape, architecture)
    half = shape.head_dim // 2
    for block in architecture.blocks:
        attention = layers_of(model)[block.source]
        for group in range(shape.kv_groups if block.head_width else 0):
            dropped = orders[block.source][group, block.head_width // 2 :]
            channels = torch.cat([dropped, dropped + half])
            for linear in (attention.k_proj, attention.v_proj):
                zero_rows(linear, group * shape.head_dim + channels)
            for query in range(shape.queries_per_group):
                rows = (group * shape.queries_per_group + query) * shape.head_dim + channels
                zero_rows(attention.q_proj, rows)
                attention.o_proj.weight[:, rows] = 0
    return model


def zero_rows(linear: torch.nn.Linear, rows: Tensor) -> None:
    linear.weight[rows] = 0
    if linear.bias is not None:
        linear.bias[rows] = 0


@every_parent
@every_cut
def test_narrow_heads_are_the_parents_with_the_rest_zeroed(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    orders = random_orders(shape)
    for width in (None, 2, shape.head_dim - 2):
        architecture = narrower(kind, shape, width)
        if not any(block.head_width for block in architecture.blocks):
            continue
        logits = cut(parent, shape, architecture, rotary=orders)(tokens()).logits
        same(logits, zeroed_heads(parent, shape, architecture, orders)(tokens()).logits)
        whole = cut(parent, shape, architecture_of_cut(kind, shape))(tokens()).logits
        assert (logits - whole).std() > 0.05 * logits.std()  # what was dropped mattered
        frequencies = cut(parent, shape, architecture, rotary=[order.flip(1) for order in orders])
        assert not torch.allclose(frequencies(tokens()).logits, logits, rtol=1e-2, atol=1e-2)


@every_parent
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_all_pairs_in_their_order_are_the_family_s_attention_bit_for_bit(
    name: str, implementation: str
) -> None:
    parent, shape = permuted_parent(name)
    whole = copy.deepcopy(parent)
    whole.set_attn_implementation(implementation)
    logits = whole(tokens()).logits
    natural = torch.arange(shape.head_dim // 2).expand(shape.kv_groups, -1)
    for block in layers_of(whole):
        narrow(block.attention, natural)
    assert torch.equal(whole(tokens()).logits, logits)


@every_parent
@every_cut
def test_a_cache_does_not_change_narrow_heads(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    subnet = cut(parent, shape, narrower(kind, shape, 4), rotary=random_orders(shape))
    logits = subnet(tokens()).logits
    same(decoded(subnet, tokens(), DynamicCache(config=subnet.config)), logits)
    settings = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
    cached, uncached = (subnet.generate(tokens(), use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, uncached)


@every_parent
def test_the_parent_stays_as_it_was_and_a_copy_shares_nothing(name: str) -> None:
    parent, shape = permuted_parent(name)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    orders = random_orders(shape)
    view, own = (
        cut(parent, shape, narrower("narrow", shape), rotary=orders, own=own) for own in (False, True)
    )
    assert torch.equal(view(tokens()).logits, own(tokens()).logits)
    theirs = {value.untyped_storage().data_ptr() for value in [*parent.state_dict().values(), *orders]}
    assert not {value.untyped_storage().data_ptr() for value in own.state_dict().values()} & theirs
    for key, value in parent.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_narrow_heads_can_change_their_attention_implementation(name: str) -> None:
    parent, shape = permuted_parent(name)
    subnet = cut(parent, shape, narrower("narrow", shape, 4), rotary=random_orders(shape), own=True)
    before = subnet(tokens()).logits
    subnet.set_attn_implementation("eager")
    out = subnet(tokens(), output_attentions=True)
    same(out.logits, before)
    assert len(out.attentions) == 3
    same(decoded(subnet, tokens(), DynamicCache(config=subnet.config)), before)


@every_parent
@every_cut
def test_costs_of_narrow_heads_are_the_counted_ones(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    model = CostModel(shape, WINDOW - 1, 4)
    for width, hidden in ((None, 32), (4, 32), (4, 19)):
        architecture = replace(narrower(kind, shape, width), hidden=hidden)
        subnet = cut(parent, shape, architecture, rotary=random_orders(shape))
        assert model(architecture) == counted(subnet, WINDOW - 1)
        many = model.of_widths(
            widths_of(architecture, shape)[None],
            hidden=np.array([hidden]),
            heads=head_widths_of(architecture, shape)[None],
        )
        assert {cost: int(value[0]) for cost, value in many.items()} == model(architecture)


def saved(
    name: str, kind: str, folder: Path, hidden: int = 32, width: int | None = 4
) -> tuple[PreTrainedModel, Path]:
    """A subnet with narrow heads and the checkpoint written of it."""
    parent, shape = permuted_parent(name)
    architecture = replace(narrower(kind, shape, width), hidden=hidden)
    subnet = cut(parent, shape, architecture, rotary=random_orders(shape), own=True)
    return subnet, save_checkpoint(subnet, parent.config, shape, architecture, folder)


@every_parent
@pytest.mark.parametrize("kind", ["uniform", "narrow", "all at once"])
def test_what_is_loaded_is_what_was_saved(name: str, kind: str, tmp_path: Path) -> None:
    for number, (hidden, width) in enumerate(((32, 4), (32, None), (20, 4))):
        subnet, folder = saved(name, kind, tmp_path / str(number), hidden, width)
        model = load(folder)
        logits = model(tokens()).logits
        assert torch.equal(logits, subnet(tokens()).logits)
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=12)):
            same(decoded(model, tokens(), cache), logits)
        settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
        expected = model.generate(tokens(), use_cache=False, **settings)
        for use in (dict(), dict(cache_implementation="static")):
            assert torch.equal(model.generate(tokens(), **use, **settings), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_survive_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    parent = tiny_parent("llama", dtype=dtype)
    shape = shape_of(parent)
    architecture = narrower("narrow", shape, 4)
    subnet = cut(parent, shape, architecture, rotary=random_orders(shape), own=True)
    model = load(save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / "checkpoint"))
    assert torch.equal(model(tokens()).logits, subnet(tokens()).logits)
    assert model.half().model.layers[0].self_attn.rotary.dtype == torch.long


def test_a_loaded_subnet_with_narrow_heads_can_be_saved_trained_and_looked_into(tmp_path: Path) -> None:
    folder = saved("llama", "narrow", tmp_path / "first")[1]
    model = load(folder)
    logits = model(tokens()).logits
    model.save_pretrained(tmp_path / "second")
    for file in ("config.json", "model.safetensors", "modeling_subnet.py"):
        assert (folder / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    model.set_attn_implementation("eager")
    out = model(tokens(), output_attentions=True)
    same(out.logits, logits)
    assert len(out.attentions) == 3
    with torch.enable_grad():
        model.train()(tokens(), labels=tokens()).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.slow
def test_it_loads_where_this_project_is_not_installed(tmp_path: Path) -> None:
    expected = {}
    for name in NARROW:
        subnet, folder = saved(name, "all at once", tmp_path / name)
        expected[folder] = subnet(tokens()).logits
    for folder, logits in logits_elsewhere([*expected], tmp_path).items():
        assert torch.equal(logits, expected[folder]), folder.name


def test_a_pair_is_as_important_as_all_that_goes_with_it() -> None:
    shape = permuted_parent("llama")[1]  # 2 groups of 2 queries, heads of 8 channels
    query, key = torch.zeros(32), torch.zeros(16)
    query[8 + 6] = 1.0  # second head: pair 2 of the first group
    query[16 + 1] = query[24 + 5] = 0.4  # both halves of pair 1 of the second group, in different heads
    key[8 + 3] = 0.7
    order = rotary_scores(shape, query, key).argsort(dim=1, descending=True, stable=True)
    assert order[0, 0] == 2
    assert order[1, :2].tolist() == [1, 3]
    assert all(sorted(row) == [0, 1, 2, 3] for row in order.tolist())


def magnitudes(attention: Layer) -> tuple[Tensor, Tensor]:
    """Squared norms of each channel's weights, for `rotary_scores`."""
    q, k, v, o = (getattr(attention, f"{name}_proj").weight.square() for name in "qkvo")
    return q.sum(1) + o.sum(0), k.sum(1) + v.sum(1)


@every_parent
def test_pairs_without_weights_are_cut_without_a_trace(name: str) -> None:
    parent, shape = permuted_parent(name)
    narrow_only = Architecture(32, tuple(replace(block, head_width=2) for block in shape.parent.blocks))
    model = zeroed_heads(parent, shape, narrow_only, random_orders(shape))
    found = [
        rotary_scores(shape, *magnitudes(block)).argsort(dim=1, descending=True) for block in layers_of(model)
    ]
    same(cut(model, shape, narrow_only, rotary=found)(tokens()).logits, model(tokens()).logits)


def test_head_widths_have_one_spelling_and_old_digests_stay() -> None:
    whole, narrow = Block(0, 1, 1, 8), Block(0, 1, 1, 8, 4)
    assert Architecture(32, (whole,)).to_json() == (
        '{"blocks":[{"ffn":8,"kv_groups":1,"queries_per_group":1,"source":0}],"hidden":32}'
    )
    assert Architecture(32, (narrow,)).digest != Architecture(32, (whole,)).digest
    assert Architecture.from_json(Architecture(32, (narrow,)).to_json()).blocks == (narrow,)
    assert not Architecture(32, (whole, Block(1, 1, 1, 8, 4))).is_uniform
    for width in (0, 3, -2, 4.0, True):
        with pytest.raises(InputError, match="head_width is"):
            Block(0, 1, 1, 8, width)
    with pytest.raises(InputError, match="skips its attention"):
        Block(0, 0, 0, 8, 4)
    with pytest.raises(InputError, match="head width 8 is not below the parent's 8"):
        cut(*permuted_parent("llama"), Architecture(32, (Block(0, 1, 1, 8, 8),)))


def test_narrow_heads_that_cannot_be_built_are_refused() -> None:
    parent, shape = permuted_parent("llama")
    architecture = narrower("uniform", shape, 4)
    with pytest.raises(InputError, match="nothing says which rotary pairs"):
        cut(parent, shape, architecture)
    with pytest.raises(InputError, match=r"give \(2, 4\) for each of 3 blocks"):
        cut(parent, shape, architecture, rotary=random_orders(shape)[:2])
    for name in set(PARENTS) - set(NARROW):
        parent, shape = permuted_parent(name)
        with pytest.raises(InputError, match="or take a parent of llama, mistral, qwen2"):
            cut(parent, shape, narrower("uniform", shape, 4), rotary=random_orders(shape))
