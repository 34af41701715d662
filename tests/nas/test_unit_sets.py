"""Explicit sets: what is kept is what the masks say, and mutations keep their promises."""

import numpy as np
import pytest
import torch

from nas.cost import CostModel, budget_of
from nas.families import blocks_of, shape_of
from nas.ranking import Ranking, permute
from nas.repair.steps import compensate
from nas.repair.stream import Stream
from nas.repair.walk import walk
from nas.subnet import cut, inside_heads
from nas.unit_sets import BlockSets, UnitSets, most_important, resized, swapped
from tests.nas.tiny_models import random_ranking, tiny_parent, tokens


def random_sets(name: str, pairs: int = 2, channels: int = 11, dropped: int | None = None) -> UnitSets:
    shape = shape_of(tiny_parent(name))
    rng = np.random.default_rng(0)

    def mask(n: int, count: int) -> np.ndarray:
        found = np.zeros(n, dtype=bool)
        found[rng.choice(n, count, replace=False)] = True
        return found

    blocks = tuple(
        BlockSets(
            np.stack([mask(shape.head_dim // 2, pairs) for _ in range(shape.kv_groups)]),
            mask(shape.ffn, channels + block),
        )
        for block in range(shape.blocks)
    )
    alive = np.ones(shape.blocks, dtype=bool)
    if dropped is not None:
        alive[dropped] = False
    return UnitSets(blocks, alive)


@pytest.mark.parametrize("name", ["llama", "llama-biased", "llama-mha", "mistral", "qwen2"])
def test_a_subnet_of_sets_is_the_parent_with_all_else_at_zero(name: str) -> None:
    parent, sets = tiny_parent(name), random_sets(name, channels=9)
    shape = shape_of(parent)
    subnet = cut(parent, shape, sets.architecture(shape), rotary=sets.rotary(), channels=sets.channels())
    masked = tiny_parent(name)
    with torch.no_grad():
        for layer, block in zip(blocks_of(masked), sets.blocks, strict=True):
            layer.mlp.down_proj.weight[:, ~torch.from_numpy(block.channels)] = 0.0
            gone = torch.stack([torch.from_numpy(~row).nonzero().flatten() for row in block.pairs])
            attention = layer.self_attn
            for linear, heads in (
                (attention.q_proj, shape.queries_per_group), (attention.k_proj, 1), (attention.v_proj, 1),
            ):  # fmt: skip
                rows = inside_heads(shape, gone, heads)
                linear.weight[rows] = 0.0
                if linear.bias is not None:
                    linear.bias[rows] = 0.0
        logits = subnet(tokens()).logits
        expected = masked(tokens()).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_sets_cost_what_their_subnet_has() -> None:
    parent, sets = tiny_parent("llama"), random_sets("llama", dropped=1)
    shape = shape_of(parent)
    cost = CostModel(shape, 12, 4)
    architecture = sets.architecture(shape)
    assert [block.source for block in architecture.blocks] == [0, 2]
    assert all(block.head_width == 4 for block in architecture.blocks)
    subnet = cut(parent, shape, architecture, rotary=sets.rotary(), channels=sets.channels())
    counted = sum(p.numel() for p in blocks_of(subnet).parameters())
    assert sets.load(budget_of(cost, 1.0)) == counted / cost(shape.parent)["block_parameters"]


def test_reformation_of_sets_helps_and_keeps_them() -> None:
    parent, sets = tiny_parent("llama"), random_sets("llama", pairs=3, channels=14)
    shape = shape_of(parent)
    architecture, windows = sets.architecture(shape), tokens(batch=24)
    given = {"rotary": sets.rotary(), "channels": sets.channels()}
    plain = cut(parent, shape, architecture, **given)
    reformed = walk(parent, shape, architecture, Stream(parent, windows), [compensate()], **given)
    with torch.no_grad():
        wanted = parent.model(windows).last_hidden_state
        errors = [
            float((m.model(windows).last_hidden_state - wanted).square().mean()) for m in (plain, reformed)
        ]
    assert errors[1] < errors[0]
    assert torch.equal(
        blocks_of(reformed)[1].self_attn.q_proj.weight, blocks_of(plain)[1].self_attn.q_proj.weight
    )


def test_sets_of_channels_are_reformed_like_a_permuted_parent() -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    sets = random_sets("llama", pairs=shape.head_dim // 2, channels=14)
    architecture, windows = sets.architecture(shape), tokens(batch=24)
    whole = random_ranking(shape)
    same = Ranking(
        tuple(torch.arange(shape.kv_groups) for _ in whole.groups),
        tuple(torch.arange(shape.queries_per_group).expand(shape.kv_groups, -1) for _ in whole.queries),
        tuple(sets.channels()),
    )
    by_sets = walk(
        parent, shape, architecture, Stream(parent, windows), [compensate()], channels=sets.channels()
    )
    ordered = permute(parent, shape, same)
    by_prefix = walk(ordered, shape, architecture, Stream(ordered, windows), [compensate()])
    with torch.no_grad():
        torch.testing.assert_close(by_sets(tokens()).logits, by_prefix(tokens()).logits, rtol=1e-3, atol=1e-3)


def test_a_bank_cannot_be_used_with_orders() -> None:
    parent, sets = tiny_parent("llama"), random_sets("llama")
    shape = shape_of(parent)
    with pytest.raises(ValueError, match="repairs of prefixes"):
        cut(parent, shape, sets.architecture(shape), object(), channels=sets.channels())  # type: ignore[arg-type]


def test_the_best_units_are_kept() -> None:
    sets = most_important([torch.tensor([[1.0, 5.0, 3.0]])], [torch.tensor([2.0, 9.0, 1.0, 4.0])], (2, 2))
    assert sets.blocks[0].pairs.tolist() == [[False, True, True]]
    assert sets.blocks[0].channels.tolist() == [False, True, False, True]


@pytest.mark.parametrize("count", [1, 5, 9, 12])
def test_a_resized_mask_has_so_many_and_moves_nothing_else(count: int) -> None:
    mask = np.arange(12) < 5
    new = resized(mask, count, np.random.default_rng(1))
    assert new.sum() == count
    assert (new & mask).sum() == min(count, 5)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8, 1.0])
def test_a_swapped_mask_keeps_its_size_and_overlap(overlap: float) -> None:
    mask = np.arange(40) < 20
    least = 20
    for seed in range(40):
        new = swapped(mask, overlap, np.random.default_rng(seed))
        least = min(least, int((new & mask).sum()))
        assert new.sum() == 20
        assert (new & mask).sum() >= overlap * 20
        assert (new != mask).any() == (overlap < 1.0)
    assert least == round(overlap * 20), "as many are exchanged as may be"
