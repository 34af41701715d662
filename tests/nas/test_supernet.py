"""A super-network: its slices are its subnets, with adapters too, and training reaches only them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import InputError
from nas.adapters import Adapted, AdaptedEmbedding, adapt, merge
from nas.architecture import Architecture
from nas.evidence import Evidence
from nas.families import blocks_of, shape_of
from nas.importance import CRITERIA
from nas.recovery.losses import Reference, divergence
from nas.shape import Shape
from nas.subnet import cut
from nas.supernet import training
from nas.supernet.grids import Grid
from nas.supernet.ordering import STREAMS, order
from nas.supernet.strategies import STRATEGIES, Pass, Sandwich
from nas.supernet.training import TrainingRecipe, backward, train
from tests.nas.tiny_models import NARROWABLE, VOCAB, architecture_of_cut, same, tiny_parent, tokens

every_parent = pytest.mark.parametrize("name", NARROWABLE)
some_parents = pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen3"])
# With some of the queries of a group, too, whose rows are no prefix.
every_cut = pytest.mark.parametrize("kind", ["uniform", "narrow", "all at once"])
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def sub_network(kind: str, shape: Shape, hidden: int = 20) -> Architecture:
    return replace(architecture_of_cut(kind, shape), hidden=hidden)


def with_adapters(parent: PreTrainedModel) -> PreTrainedModel:
    """The parent with random adapters that are not at their start, where they do nothing."""
    adapted = copy.deepcopy(parent)
    draw = torch.Generator().manual_seed(1)
    for parameter in adapt(adapted, rank=3, alpha=6.0, ends=True, generator=draw):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return adapted


def grid_of(shape: Shape) -> Grid:
    return Grid((sub_network("uniform", shape, 16), sub_network("uniform", shape), shape.parent))


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


@every_cut
@every_parent
def test_a_slice_is_the_sub_network_that_is_taken_out(name: str, kind: str) -> None:
    parent = tiny_parent(name).requires_grad_(True)
    shape = shape_of(parent)
    architecture = sub_network(kind, shape)
    taken = cut(parent, shape, architecture, own=True)
    sliced = cut(parent, shape, architecture, gradients=True)
    assert sliced(tokens()).logits.requires_grad
    assert torch.equal(sliced(tokens()).logits, taken(tokens()).logits)
    assert {name for name, _ in taken.named_parameters(remove_duplicate=False)} == set(taken.state_dict())


@every_cut
@every_parent
def test_a_slice_with_adapters_is_the_sub_network_of_the_merged_one(name: str, kind: str) -> None:
    parent = tiny_parent(name)
    shape = shape_of(parent)
    adapted = with_adapters(parent)
    merged = merge(copy.deepcopy(adapted))
    architecture = sub_network(kind, shape)
    sliced = cut(adapted, shape, architecture, gradients=True)
    taken = cut(merged, shape, architecture)
    with torch.no_grad():
        same(sliced(tokens()).logits, taken(tokens()).logits)
        bare = cut(parent, shape, architecture)(tokens()).logits
    assert not torch.allclose(bare, taken(tokens()).logits, atol=1e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_new_adapters_do_nothing_and_merged_ones_leave_no_trace(tied: bool) -> None:
    parent = tiny_parent("llama", tie_word_embeddings=tied)
    before = weights(parent)
    adapted = copy.deepcopy(parent)
    parameters = adapt(adapted, rank=2, alpha=4.0, ends=True, generator=torch.Generator().manual_seed(0))
    assert len(parameters) == 2 * (7 * 3 + (1 if tied else 2))
    assert {p for p in adapted.parameters() if p.requires_grad} == set(parameters)
    with torch.no_grad():
        assert torch.equal(adapted(tokens()).logits, parent(tokens()).logits)
    merged = merge(adapted)
    assert not any(isinstance(module, Adapted | AdaptedEmbedding) for module in merged.modules())
    assert merged.state_dict().keys() == before.keys()
    for name, weight in merged.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_adapters_of_no_rank_are_refused() -> None:
    with pytest.raises(InputError, match="rank is 0"):
        adapt(tiny_parent("llama"), rank=0, alpha=1.0)


@some_parents
def test_gradients_reach_the_slice_and_nothing_else(name: str) -> None:
    parent = tiny_parent(name).requires_grad_(True)
    shape = shape_of(parent)
    architecture = sub_network("shallow", shape)
    narrow = replace(architecture, blocks=tuple(replace(b, kv_groups=1, ffn=10) for b in architecture.blocks))
    backward(parent, shape, [Pass(narrow)], tokens())
    assert all(parameter.grad is None for parameter in blocks_of(parent)[0].parameters())
    assert reached(parent.lm_head.weight) == [VOCAB, 20]
    assert reached(parent.model.norm.weight) == [20]
    inner = shape.queries_per_group * shape.head_dim
    for block in list(blocks_of(parent))[1:]:
        assert reached(block.self_attn.q_proj.weight) == [inner, 20]
        assert reached(block.self_attn.v_proj.weight) == [shape.head_dim, 20]
        assert reached(block.self_attn.o_proj.weight) == [20, inner]
        assert reached(block.mlp.gate_proj.weight) == [10, 20]
        assert reached(block.mlp.down_proj.weight) == [20, 10]
        assert reached(block.input_layernorm.weight) == [20]


def reached(parameter: Tensor) -> list[int]:
    """One past the last place of a gradient that is not 0, along each axis."""
    assert parameter.grad is not None
    return [int(axis.max()) + 1 for axis in parameter.grad.nonzero(as_tuple=True)]


def test_gradients_of_adapters_reach_the_slice_and_the_weights_none() -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    adapted = with_adapters(parent)
    backward(adapted, shape, [Pass(sub_network("uniform", shape))], tokens())
    up = blocks_of(adapted)[0].mlp.up_proj
    assert reached(up.down) == [3, 20] and reached(up.up) == [16, 3]
    assert all(
        p.grad is None for name, p in adapted.named_parameters() if not name.endswith((".up", ".down"))
    )


def test_a_slice_has_the_gradient_of_the_sub_network_trained_alone() -> None:
    """The gains of the norms, which a cut scales by sqrt(d / d'), take that factor to their gradient."""
    parent = tiny_parent("llama").requires_grad_(True)
    shape = shape_of(parent)
    architecture = sub_network("uniform", shape)
    alone = cut(parent, shape, architecture, own=True).requires_grad_(True)
    backward(alone, shape, [Pass()], tokens())
    backward(parent, shape, [Pass(architecture)], tokens())
    taken, whole = blocks_of(alone)[1], blocks_of(parent)[1]
    same(whole.mlp.down_proj.weight.grad[:20, :16], taken.mlp.down_proj.weight.grad)
    factor = (32 / 20) ** 0.5
    same(whole.input_layernorm.weight.grad[:20], factor * taken.input_layernorm.weight.grad)


def test_the_largest_slice_is_the_super_network() -> None:
    parent = tiny_parent("llama").requires_grad_(True)
    shape = shape_of(parent)
    losses = backward(
        parent, shape, [Pass(), Pass(shape.parent), Pass(shape.parent, distilled=True)], tokens()
    )
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(0.0, abs=1e-6)


def towards(teacher: Tensor, student: Tensor) -> Tensor:
    """What a distilled pass minimises, of logits (n, vocab)."""
    return divergence(student, Reference(teacher.log_softmax(-1)))


def test_the_distance_is_over_the_vocabulary_and_a_mean_over_tokens() -> None:
    teacher, student = torch.randn(5, 7), torch.randn(5, 7)
    p, q = teacher.softmax(1), student.softmax(1)
    by_hand = (p * (p.log() - q.log())).sum(1)
    assert float(towards(teacher, student)) == pytest.approx(float(by_hand.mean()), rel=1e-5)
    twice = towards(teacher.repeat(2, 1), student.repeat(2, 1))
    assert float(twice) == pytest.approx(float(towards(teacher, student)), rel=1e-6)


def test_a_distilled_pass_does_not_teach_the_teacher() -> None:
    parent = tiny_parent("llama").requires_grad_(True)
    shape = shape_of(parent)
    one_block = sub_network("one block", shape)
    backward(parent, shape, [Pass()], tokens())
    alone = blocks_of(parent)[0].mlp.up_proj.weight.grad.clone()
    parent.zero_grad()
    backward(parent, shape, [Pass(), Pass(one_block, distilled=True)], tokens())
    # Block 0 is not in the subnet: half of what the whole says of it, and no more.
    same(blocks_of(parent)[0].mlp.up_proj.weight.grad, alone / 2)
    with pytest.raises(ValueError, match="before it"):
        backward(parent, shape, [Pass(one_block, distilled=True)], tokens())


@every_strategy
def test_training_is_the_same_again_and_zero_steps_change_nothing(strategy: str) -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    before = weights(parent)
    recipe = TrainingRecipe(strategy=strategy, batch_size=2, learning_rate=1e-2)
    state = torch.get_rng_state()
    runs = [train(parent, shape, grid_of(shape), tokens(batch=6), 3, recipe) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0].history == runs[1].history and len(runs[0].history) == 3
    one, other = (run.model.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], before[name]) for name in one)
    none = train(parent, shape, grid_of(shape), tokens(batch=6), 0, recipe)
    for name, weight in before.items():
        assert torch.equal(parent.state_dict()[name], weight)
        assert torch.equal(none.model.state_dict()[name], weight)


@pytest.mark.parametrize("rank", [0, 4])
def test_training_lowers_the_loss_of_what_it_trains(rank: int) -> None:
    parent = tiny_parent("qwen3")
    shape = shape_of(parent)
    grid = grid_of(shape)
    windows = tokens(batch=4)
    recipe = TrainingRecipe(strategy="sandwich", batch_size=4, learning_rate=1e-2, rank=rank, dropout=0.0)
    model = train(parent, shape, grid, windows, 12, recipe).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for architecture in grid.architectures:
        assert loss(model, shape, architecture, windows) < loss(parent, shape, architecture, windows) - 0.1
    embeddings = torch.equal(model.model.embed_tokens.weight, parent.model.embed_tokens.weight)
    assert embeddings == (rank > 0)


@torch.no_grad()
def loss(model: PreTrainedModel, shape: Shape, architecture: Architecture, windows: Tensor) -> float:
    return float(cut(model, shape, architecture)(windows, labels=windows).loss)


@pytest.mark.parametrize("rank", [0, 4])
def test_an_interrupted_training_ends_where_a_whole_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    parent = tiny_parent("llama")
    shape, grid, windows = shape_of(parent), grid_of(shape_of(parent)), tokens(batch=6)
    recipe = TrainingRecipe(batch_size=2, learning_rate=1e-3, rank=rank, dropout=0.1)
    whole = train(parent, shape, grid, windows, 8, recipe)
    given = {"state": tmp_path / "training.safetensors", "fingerprint": "x"}
    done: list[int] = []

    def stop(step: int) -> None:
        done.append(step)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parent, shape, grid, windows, 8, recipe, stop, **given)  # type: ignore[arg-type]
    done.clear()
    resumed = train(parent, shape, grid, windows, 8, recipe, done.append, **given)  # type: ignore[arg-type]
    assert done == [4, 1, 1, 1, 1]
    assert resumed.history == whole.history
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight)
    with pytest.raises(InputError, match="another training"):
        train(
            parent, shape, grid, windows, 8, recipe, state=tmp_path / "training.safetensors", fingerprint="y"
        )


def test_a_training_that_cannot_be_is_refused() -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    with pytest.raises(InputError, match="-1 training steps"):
        train(parent, shape, grid_of(shape), tokens(), -1, TrainingRecipe())
    with pytest.raises(InputError, match="is not finite"):
        train(parent, shape, grid_of(shape), tokens(), 9, TrainingRecipe(batch_size=2, learning_rate=1e30))
    with pytest.raises(InputError, match="'soup' is not known"):
        TrainingRecipe(strategy="soup")


def test_strategies_pass_through_what_they_say() -> None:
    shape = shape_of(tiny_parent("llama"))
    grid = grid_of(shape)

    def passes(strategy: str, far: float = 0.5, step: int = 0) -> list[Pass]:
        return STRATEGIES[strategy](grid, far, step, Sandwich(2, True), np.random.default_rng(0))

    assert passes("standard") == [Pass()]
    assert passes("random")[0].architecture in grid.architectures
    assert passes("ats", step=0) == [Pass()] and passes("ats", step=1)[0].architecture is not None
    rng = np.random.default_rng(0)
    linear = STRATEGIES["random-linear"]
    for far, expected in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        sampled = [linear(grid, far, 0, Sandwich(), rng)[0].architecture is not None for _ in range(400)]
        assert np.mean(sampled) == pytest.approx(expected, abs=0.1)  # four standard errors
    for strategy in ("sandwich", "sandwich-kd"):
        whole, *others = passes(strategy)
        assert whole == Pass() and len(others) == 3 and others[-1].architecture == grid.smallest
        assert all(each.distilled == (strategy == "sandwich-kd") for each in others)


@pytest.mark.parametrize("stream", STREAMS)
@some_parents
def test_an_ordered_parent_computes_what_it_did(name: str, stream: str) -> None:
    parent = tiny_parent(name)
    evidence = Evidence(parent, shape_of(parent), tokens(batch=4))
    ordered = order(evidence, CRITERIA["activation"], stream)
    with torch.no_grad():
        same(ordered.model(tokens()).logits, parent(tokens()).logits)
    assert sorted(ordered.blocks) == [0, 1, 2]
    influence = evidence.statistics.influence
    assert influence[ordered.blocks[0]] == max(influence)
