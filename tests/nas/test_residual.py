"""The residual stream can be permuted and rotated without a trace, and then cut to a prefix."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture
from nas.families import layers_of, layout_of, shape_of
from nas.residual import measure_stream, permute_stream, rotate_stream
from nas.shape import Shape
from nas.subnet import cut
from tests.nas.test_cut import cached_logits, same, zeroed
from tests.nas.tiny_models import (
    CUTS,
    NARROWABLE,
    PARENTS,
    architecture_of_cut,
    config_of,
    permuted_parent,
    tiny_parent,
    tokens,
)

HIDDEN = 20
"""Channels kept of 32."""

every_parent = pytest.mark.parametrize("name", NARROWABLE)
every_cut = pytest.mark.parametrize("kind", CUTS)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_order(width: int) -> Tensor:
    return torch.randperm(width, generator=torch.Generator().manual_seed(0))


def random_basis(width: int, seed: int = 0) -> Tensor:
    """Orthogonal, in float64."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64)).Q


def narrower(kind: str, shape: Shape, hidden: int = HIDDEN) -> Architecture:
    return replace(architecture_of_cut(kind, shape), hidden=hidden)


def zeroed_stream(parent: PreTrainedModel, shape: Shape, architecture: Architecture) -> PreTrainedModel:
    """The whole parent with all that the architecture drops at zero, hidden channels where it writes them."""
    mask = (torch.arange(shape.hidden) < architecture.hidden).float()
    model = zeroed(parent, shape, architecture)
    writers = [model.model.embed_tokens]
    for block in layers_of(model):
        writers += [block.o_proj, block.mlp if block.layout.experts else block.down_proj]
    for writer in writers:
        writer.register_forward_hook(lambda _, args, output: output * mask)
    return model


@every_parent
def test_a_permuted_or_rotated_stream_leaves_the_logits(name: str) -> None:
    parent = tiny_parent(name)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    settings = parent.config.to_dict()
    permuted = permute_stream(parent, random_order(32))
    behind = any(layer.layout.attention_post for layer in layers_of(parent))
    if behind:
        with pytest.raises(InputError, match="norms behind its modules"):
            rotate_stream(parent, random_basis(32))
    for model in [permuted] if behind else [permuted, rotate_stream(parent, random_basis(32))]:
        assert not torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
        same(model(tokens()).logits, parent(tokens()).logits)
    assert parent.config.to_dict() == settings
    for key, value in parent.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_tied_head_stays_tied_in_a_permutation_and_is_counted_in_a_rotation() -> None:
    parent = tiny_parent("llama-biased")
    shape = shape_of(parent)
    permuted = permute_stream(parent, random_order(32))
    assert permuted.lm_head.weight is permuted.model.embed_tokens.weight
    assert shape_of(permuted) == shape
    rotated = rotate_stream(parent, random_basis(32))
    assert not rotated.config.tie_word_embeddings
    assert shape_of(rotated) == replace(shape, outside=shape.outside + shape.vocab * shape.hidden)


@every_parent
@every_cut
def test_a_narrower_stream_is_the_parent_with_the_rest_zeroed(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    architecture = narrower(kind, shape)
    logits = cut(parent, shape, architecture)(tokens()).logits
    same(logits, zeroed_stream(parent, shape, architecture)(tokens()).logits)
    whole = cut(parent, shape, replace(architecture, hidden=shape.hidden))(tokens()).logits
    assert (logits - whole).std() > 0.2 * logits.std()  # what was dropped mattered


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen3"])
def test_of_a_narrower_stream_only_norms_are_copied(name: str) -> None:
    parent, shape = permuted_parent(name)
    storages = {weight.untyped_storage().data_ptr() for weight in parent.state_dict().values()}
    kept = narrower("shallow", shape)
    state, own = (cut(parent, shape, kept, own=own).state_dict() for own in (False, True))
    copies = {key for key, weight in state.items() if weight.untyped_storage().data_ptr() not in storages}
    assert copies == {key for key in state if key.endswith("norm.weight") and "self_attn" not in key}
    for key, weight in own.items():
        assert weight.untyped_storage().data_ptr() not in storages, key
        assert torch.equal(weight, state[key]), key
    tied = parent.config.tie_word_embeddings
    assert (state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()) == tied


@every_parent
def test_a_cache_does_not_change_a_narrower_stream(name: str) -> None:
    parent, shape = permuted_parent(name)
    subnet = cut(parent, shape, narrower("all at once", shape))
    logits = subnet(tokens()).logits
    same(cached_logits(subnet, tokens(), DynamicCache(config=subnet.config)), logits)
    settings = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
    for kind in ("uniform", "all at once"):
        subnet = cut(parent, shape, narrower(kind, shape))
        cached, uncached = (subnet.generate(tokens(), use_cache=use, **settings) for use in (True, False))
        assert torch.equal(cached, uncached)


def confined(name: str, basis: Tensor) -> PreTrainedModel:
    """A tiny parent whose stream stays in the space of the columns of `basis` (hidden, rank)."""
    parent = tiny_parent(name)
    project = (basis @ basis.T).float()
    embedding = parent.model.embed_tokens.weight
    embedding.copy_(embedding @ project)
    for block in layers_of(parent):
        if block.layout.experts:
            block.mlp.experts.down_proj.copy_(project @ block.mlp.experts.down_proj)
        for writer in (block.o_proj,) if block.layout.experts else (block.o_proj, block.down_proj):
            writer.weight.copy_(project @ writer.weight)
            if writer.bias is not None:
                writer.bias.copy_(project @ writer.bias)
    return parent


CONFINED = [name for name in NARROWABLE if not layout_of(config_of(name)).attention_post]
"""Parents without gains between a module and the stream, which would lead out of any space."""


@pytest.mark.parametrize("name", CONFINED)
def test_channels_that_are_always_zero_are_cut_without_a_trace(name: str) -> None:
    parent = confined(name, torch.eye(32, dtype=torch.float64)[:, 5:25])
    order = measure_stream(parent, tokens(batch=4)).order
    assert sorted(order[:HIDDEN].tolist()) == list(range(5, 25))
    permuted = permute_stream(parent, order)
    shape = shape_of(permuted)
    subnet = cut(permuted, shape, Architecture(HIDDEN, shape.parent.blocks))
    same(subnet(tokens()).logits, parent(tokens()).logits)


@pytest.mark.parametrize("name", CONFINED)
def test_directions_that_are_never_used_are_cut_without_a_trace(name: str) -> None:
    parent = confined(name, random_basis(32, seed=1)[:, :HIDDEN])
    rotated = rotate_stream(parent, measure_stream(parent, tokens(batch=4)).basis)
    shape = shape_of(rotated)
    subnet = cut(rotated, shape, Architecture(HIDDEN, shape.parent.blocks))
    same(subnet(tokens()).logits, parent(tokens()).logits)


@pytest.mark.parametrize("name", ["llama", "granite"])
def test_what_is_put_first_is_measured_first(name: str) -> None:
    parent = tiny_parent(name)
    seen: list[int] = []
    found = measure_stream(parent, tokens(batch=7), batch_size=4, progress=seen.append)
    assert seen == [4, 3]
    one = measure_stream(parent, tokens(batch=7), batch_size=1)
    torch.testing.assert_close(one.activation, found.activation, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.gram, found.gram, rtol=1e-5, atol=1e-5)
    again = measure_stream(permute_stream(parent, found.order), tokens(batch=7))
    torch.testing.assert_close(again.activation, found.activation[found.order], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.activation[found.order], found.activation.sort(descending=True).values)
    torch.testing.assert_close(found.gram.trace(), torch.tensor(32.0).double(), rtol=1e-4, atol=0.0)
    rotated = measure_stream(rotate_stream(parent, found.basis), tokens(batch=7)).gram
    variance = torch.linalg.eigvalsh(found.gram).flip(0)
    torch.testing.assert_close(rotated, torch.diag(variance), rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks for module in parent.modules())


@pytest.mark.parametrize("name", sorted(set(PARENTS) - set(NARROWABLE)))
def test_families_whose_hidden_width_is_fixed_keep_their_stream(name: str) -> None:
    parent, shape = permuted_parent(name)
    for refused in (
        lambda: cut(parent, shape, Architecture(16, shape.parent.blocks)),
        lambda: permute_stream(parent, random_order(32)),
        lambda: rotate_stream(parent, random_basis(32)),
        lambda: measure_stream(parent, tokens()),
    ):
        with pytest.raises(InputError, match="keep all hidden channels"):
            refused()
