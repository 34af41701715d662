"""The other ways of evaluating a subnet, which benchmarks time, compute what the cut one does."""

import pytest
import torch

from benchmarks.subnets import check_dense, deepcopy_and_prune, masked
from data.errors import InputError
from nas.subnet import cut
from tests.nas.tiny_models import CUTS, architecture_of_cut, permuted_parent, tokens

LAYOUTS = ("llama-biased", "gemma2", "olmo2", "phi3", "starcoder2", "gpt2", "opt", "falcon-alibi")
"""Parents that differ in where they keep what a mask or a copy takes hold of."""


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_masks_and_pruned_copies_are_the_subnet(name: str) -> None:
    parent, shape = permuted_parent(name)
    ids = tokens()
    before = parent(ids, use_cache=False).logits
    for kind in CUTS:
        architecture = architecture_of_cut(kind, shape)
        expected = cut(parent, shape, architecture)(ids, use_cache=False).logits
        pruned = deepcopy_and_prune(parent, shape, architecture)(ids, use_cache=False).logits
        torch.testing.assert_close(pruned, expected, rtol=1e-4, atol=1e-4)
        with masked(parent, shape, architecture):
            hidden = parent(ids, use_cache=False).logits
        torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(parent(ids, use_cache=False).logits, before)


def test_mixtures_of_experts_are_refused() -> None:
    with pytest.raises(InputError, match="mixtral has 6 experts in their place; give a parent without"):
        check_dense(permuted_parent("mixtral")[1])
