"""Closed-form costs are what counting on the cut model gives."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from data.errors import InputError
from nas.cost import COSTS, Budget, CostModel
from nas.families import shape_of
from nas.shape import widths_of
from nas.subnet import cut
from tests.nas.tiny_models import CUTS, PARENTS, WINDOW, architecture_of_cut, permuted_parent, tokens


@pytest.mark.parametrize("name", PARENTS)
@pytest.mark.parametrize("kind", CUTS)
def test_costs_in_closed_form_are_the_counted_ones(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    length = WINDOW - 1  # as long as a sliding window keeps everything
    architecture = architecture_of_cut(kind, shape)
    costs = CostModel(shape, length, 4)(architecture)
    subnet = cut(parent, shape, architecture)
    subnet.set_attn_implementation("eager")  # the counter does not know the CPU's fused attention
    cache = DynamicCache(config=subnet.config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subnet(tokens(length, batch=1), past_key_values=cache)
    counted = {
        "block_parameters": sum(weight.numel() for weight in subnet.model.layers.parameters()),
        "parameters": sum(weight.numel() for weight in subnet.parameters()),
        "flops": counter.get_total_flops(),
        "kv_cache_bytes": sum(
            layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized
        ),
    }
    assert costs == counted


@pytest.mark.parametrize("name", PARENTS)
def test_the_parent_costs_what_it_is(name: str) -> None:
    parent, shape = permuted_parent(name)
    costs = CostModel(shape, 8, 2)(shape.parent)
    assert costs["parameters"] == parent.num_parameters()
    assert costs["kv_cache_bytes"] == 2 * 2 * 8 * shape.blocks * shape.kv_groups * shape.head_dim


@pytest.mark.parametrize("name", ["llama-biased", "gemma2"])
def test_a_shape_is_read_without_weights(name: str) -> None:
    parent, shape = permuted_parent(name)
    with torch.device("meta"):
        assert shape_of(AutoModelForCausalLM.from_config(parent.config)) == shape


def test_many_architectures_cost_what_each_does() -> None:
    shape = permuted_parent("llama-biased")[1]
    model = CostModel(shape, 32, 2)
    each = [architecture_of_cut(kind, shape) for kind in CUTS]
    together = model.of_widths(np.stack([widths_of(architecture, shape) for architecture in each]))
    assert set(together) == set(COSTS)
    for index, architecture in enumerate(each):
        assert {name: int(values[index]) for name, values in together.items()} == model(architecture)


def test_a_budget_is_the_tightest_of_its_limits() -> None:
    shape = permuted_parent("llama")[1]
    model = CostModel(shape, 32, 2)
    whole = model(shape.parent)
    small = widths_of(architecture_of_cut("all at once", shape), shape)
    both = np.stack([widths_of(shape.parent, shape), small])
    assert Budget(model, whole).allows(both).tolist() == [True, True]
    tight = Budget(model, {"parameters": whole["parameters"], "flops": whole["flops"] // 2})
    assert tight.allows(both).tolist() == [False, True]
    assert tight.load(both)[0] == pytest.approx(2.0)
    for limits, words in (
        ({}, "at least one limit"),
        ({"latency": 3}, "unknown cost 'latency'"),
        ({"flops": 0}, "budget of 0 flops leaves no model"),
    ):
        with pytest.raises(InputError, match=words):
            Budget(model, limits)
