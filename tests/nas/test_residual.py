"""What a narrower residual stream keeps that is not a law of every family (see `test_laws`)."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from nas.architecture import Architecture
from nas.families import shape_of
from nas.laws.streams import random_basis, random_order
from nas.residual import measure_stream, permute_stream, rotate_stream
from nas.shape import Shape
from nas.subnet import cut
from tests.nas.tiny_models import (
    architecture_of_cut,
    permuted_parent,
    tiny_parent,
    tokens,
)

HIDDEN = 20
"""Channels kept of 32."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def narrower(kind: str, shape: Shape, hidden: int = HIDDEN) -> Architecture:
    return replace(architecture_of_cut(kind, shape), hidden=hidden)


def test_a_tied_head_stays_tied_in_a_permutation_and_is_counted_in_a_rotation() -> None:
    parent = tiny_parent("llama-biased")
    shape = shape_of(parent)
    permuted = permute_stream(parent, random_order(32))
    assert permuted.lm_head.weight is permuted.model.embed_tokens.weight
    assert shape_of(permuted) == shape
    rotated = rotate_stream(parent, random_basis(32))
    assert not rotated.config.tie_word_embeddings
    assert shape_of(rotated) == replace(shape, outside=shape.outside + shape.vocab * shape.hidden)


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


"""Parents without gains between a module and the stream, which would lead out of any space."""


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
