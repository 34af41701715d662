"""Closed-form costs; that they are the counted ones is a law of every family (see `test_laws`)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from data.errors import InputError
from nas.architecture import Architecture
from nas.cost import COUNTED, Budget, CostModel
from nas.families import family_of, shape_of
from nas.shape import architecture_of, widths_of
from nas.subnet import cut
from tests.nas.tiny_models import (
    CUTS,
    architecture_of_cut,
    permuted_parent,
)


@pytest.mark.parametrize("name", ["llama", "falcon-groups", "gpt2"])
def test_the_parent_costs_what_it_is(name: str) -> None:
    parent, shape = permuted_parent(name)
    costs = CostModel(shape, 8, 2)(shape.parent)
    assert costs["parameters"] == parent.num_parameters()
    keys = shape.kv_groups * (shape.queries_per_group if family_of(parent.config).caches_queries else 1)
    assert costs["kv_cache_bytes"] == 2 * 2 * 8 * shape.blocks * keys * shape.head_dim


@pytest.mark.parametrize("name", ["llama-biased", "gemma2"])
def test_a_shape_is_read_without_weights(name: str) -> None:
    parent, shape = permuted_parent(name)
    with torch.device("meta"):
        assert shape_of(AutoModelForCausalLM.from_config(parent.config)) == shape


@pytest.mark.parametrize("name", ["llama-biased", "qwen3"])
def test_many_architectures_cost_what_each_does(name: str) -> None:
    shape = permuted_parent(name)[1]
    model = CostModel(shape, 32, 2)
    hidden = np.array([32, 7, 19, 32, 31, 1, 16, 8, 24, 12])
    each = [
        replace(architecture_of_cut(kind, shape), hidden=int(width))
        for kind, width in zip(CUTS, hidden, strict=True)
    ]
    widths = np.stack([widths_of(architecture, shape) for architecture in each])
    together = model.of_widths(widths, hidden=hidden)
    whole = model.of_widths(widths)
    assert {name: int(cost[0]) for name, cost in whole.items()} == model(each[0])
    assert set(together) == set(COUNTED)
    for index, architecture in enumerate(each):
        assert {name: int(values[index]) for name, values in together.items()} == model(architecture)


def test_a_narrowed_parent_is_a_parent() -> None:
    parent, shape = permuted_parent("qwen3")
    narrow = Architecture(20, shape.parent.blocks)
    assert shape_of(cut(parent, shape, narrow)) == shape.narrowed(20)
    assert shape.narrowed(20).parent == narrow
    assert shape.narrowed(32) == shape
    whole = widths_of(shape.parent, shape)
    assert architecture_of(whole, shape.narrowed(20)) == narrow
    tight = Budget(CostModel(shape, 32, 2), {"parameters": CostModel(shape, 32, 2)(narrow)["parameters"]})
    assert tight.allows(np.stack([whole] * 3), np.array([21, 20, 19])).tolist() == [False, True, True]


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
        ({"flops": 0}, "--max-flops of 0 leaves no model"),
    ):
        with pytest.raises(InputError, match=words):
            Budget(model, limits)
