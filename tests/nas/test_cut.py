"""A subnet is the parent without the dropped units, and costs the parent nothing."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.families import REFUSED, family_of, layers_of, shape_of
from nas.ranking import head_columns, permute
from nas.shape import Shape
from nas.subnet import cut
from tests.nas.tiny_models import (
    CUTS,
    PARENTS,
    architecture_of_cut,
    permuted_parent,
    random_ranking,
    tiny_parent,
    tokens,
)

every_parent = pytest.mark.parametrize("name", PARENTS)
OUTPUTS = (
    ".o_proj.weight",
    "attn.c_proj.weight",
    "out_proj.weight",
    "attention.dense.weight",
    "attn.dense.weight",
)
every_cut = pytest.mark.parametrize("kind", CUTS)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def same(left: Tensor, right: Tensor) -> None:
    """Equal up to the rounding of another order of summation."""
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5 * float(right.abs().max()))


def times(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    """A hook that multiplies a module's input."""
    return lambda _, args: args[0] * mask


def zeroed(parent: PreTrainedModel, shape: Shape, architecture: Architecture) -> PreTrainedModel:
    """The permuted parent, whole, with everything that the architecture drops set to zero on its way."""
    model = copy.deepcopy(parent)
    kept = {block.source: block for block in architecture.blocks}
    for index, layer in enumerate(layers_of(model)):
        if index not in kept:
            layer.module.register_forward_hook(skip_block)
            continue
        block = kept[index]
        heads = torch.zeros(shape.kv_groups, shape.queries_per_group, shape.head_dim)
        heads[: block.kv_groups, : block.queries_per_group] = 1
        layer.o_proj.register_forward_pre_hook(times(heads.flatten()))
        if layer.layout.experts:
            layer.mlp.gate.register_forward_hook(without_experts(layer.mlp.gate, block.ffn))
        else:
            layer.down_proj.register_forward_pre_hook(times((torch.arange(shape.ffn) < block.ffn).float()))
        if not block.kv_groups:
            layer.attention.register_forward_hook(skip_attention)
        if not block.ffn:
            (layer.mlp if layer.layout.mlp else layer.down_proj).register_forward_hook(skip_mlp)
    return model


def skip_block(_: nn.Module, args: tuple[Tensor, ...], output: object) -> object:
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]


def skip_attention(_: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, None]:
    return (args[1] if len(args) > 1 else output[0] * 0), None  # bloom's adds the stream itself


def skip_mlp(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return args[1] if len(args) > 1 else output * 0


def without_experts(gate: nn.Module, kept: int) -> Callable[..., object]:
    """A hook on a router that lets no token visit the experts behind the first ones."""

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: object) -> object:
        logits = args[0].reshape(-1, args[0].shape[-1]) @ gate.weight.T
        logits[:, max(kept, gate.top_k) :] = -torch.inf
        best, index = logits.float().softmax(-1).topk(gate.top_k, dim=-1)
        if getattr(gate, "norm_topk_prob", True):
            best = best / best.sum(-1, keepdim=True)
        return logits, best.to(logits.dtype), index

    return hook


def cached_logits(model: PreTrainedModel, ids: Tensor, cache: object, prefill: int = 3) -> Tensor:
    """Logits of a prefill and then one token after the other, (batch, length, vocabulary)."""
    steps = [model(ids[:, :prefill], past_key_values=cache, use_cache=True).logits]
    for position in range(prefill, ids.shape[1]):
        steps.append(model(ids[:, position : position + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(steps, 1)


@every_parent
def test_a_permuted_parent_has_the_logits_of_the_parent(name: str) -> None:
    parent = tiny_parent(name)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    shape = shape_of(parent)
    permuted = permute(parent, shape, random_ranking(shape))
    assert not torch.equal(layers_of(permuted)[0].o_proj.weight, layers_of(parent)[0].o_proj.weight)
    same(permuted(tokens()).logits, parent(tokens()).logits)
    for key, value in parent.state_dict().items():
        assert torch.equal(value, before[key]), key


@every_parent
def test_keeping_everything_is_the_parent_bit_for_bit(name: str) -> None:
    parent, shape = permuted_parent(name)
    assert torch.equal(cut(parent, shape, shape.parent)(tokens()).logits, parent(tokens()).logits)


@every_parent
@every_cut
def test_a_subnet_is_the_parent_with_the_rest_zeroed(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    architecture = architecture_of_cut(kind, shape)
    logits = cut(parent, shape, architecture)(tokens()).logits
    same(logits, zeroed(parent, shape, architecture)(tokens()).logits)
    assert (logits - parent(tokens()).logits).std() > 0.2 * logits.std()  # what was dropped mattered


@every_parent
def test_cutting_leaves_the_parent_as_it_was(name: str) -> None:
    parent, shape = permuted_parent(name)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    settings, logits = parent.config.to_dict(), parent(tokens()).logits
    for kind in CUTS:
        for own in (False, True):
            subnet = cut(parent, shape, architecture_of_cut(kind, shape), own=own)
            subnet.generate(tokens(), max_new_tokens=2, do_sample=False)
    assert parent.config.to_dict() == settings
    assert torch.equal(parent(tokens()).logits, logits)
    for key, value in parent.state_dict().items():
        assert torch.equal(value, before[key]), key


@every_parent
@every_cut
def test_views_copy_nothing_and_copies_share_nothing(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    architecture = architecture_of_cut(kind, shape)
    view, own = cut(parent, shape, architecture), cut(parent, shape, architecture, own=True)
    storages = {weight.untyped_storage().data_ptr() for weight in parent.parameters()}
    gathered = [
        block.source for block in architecture.blocks if 0 < block.queries_per_group < shape.queries_per_group
    ]
    for key, weight in view.named_parameters():
        copied = ".q_proj." in key or key.endswith((*OUTPUTS,))
        number = next((int(part) for part in key.split(".") if part.isdigit()), 0)
        if not (copied and architecture.blocks[number].source in gathered):
            assert weight.untyped_storage().data_ptr() in storages, key
    for key, weight in own.named_parameters():
        assert weight.untyped_storage().data_ptr() not in storages, key
        assert weight.untyped_storage().nbytes() == weight.nbytes, key
    assert torch.equal(view(tokens()).logits, own(tokens()).logits)
    tied = own.get_output_embeddings().weight is own.get_input_embeddings().weight
    assert tied == (parent.get_output_embeddings().weight is parent.get_input_embeddings().weight)


@every_parent
@every_cut
def test_decoding_with_a_cache_gives_the_logits_without(name: str, kind: str) -> None:
    parent, shape = permuted_parent(name)
    subnet = cut(parent, shape, architecture_of_cut(kind, shape))
    whole = subnet(tokens(), use_cache=False).logits
    same(cached_logits(subnet, tokens(), DynamicCache(config=subnet.config)), whole)
    same(cached_logits(subnet, tokens(), DynamicCache()), whole)


@every_parent
def test_generating_with_a_cache_gives_the_tokens_without(name: str) -> None:
    parent, shape = permuted_parent(name)
    for kind in CUTS:
        subnet = cut(parent, shape, architecture_of_cut(kind, shape))
        settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
        cached, uncached = (subnet.generate(tokens(), use_cache=use, **settings) for use in (True, False))
        assert torch.equal(cached, uncached), kind


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "smollm3"])
def test_a_subnet_can_change_its_attention_implementation(name: str) -> None:
    parent, shape = permuted_parent(name)
    subnet = cut(parent, shape, architecture_of_cut("narrow", shape), own=True)
    before = subnet(tokens()).logits
    subnet.set_attn_implementation("eager" if subnet.config._attn_implementation != "eager" else "sdpa")
    assert parent.config._attn_implementation != subnet.config._attn_implementation
    same(subnet(tokens()).logits, before)
    assert subnet(tokens(), output_hidden_states=True).hidden_states[-1].shape == (2, 12, shape.hidden)


def test_hooks_of_the_parent_stay_with_the_parent() -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    # Transformers, too, hooks the blocks when it is asked for hidden states.
    assert len(parent(tokens(), output_hidden_states=True).hidden_states) == 4
    parent.model.layers[1].register_forward_hook(lambda *_: pytest.fail("a hook of the parent ran"))
    subnet = cut(parent, shape, architecture_of_cut("shallow", shape))
    assert len(subnet(tokens(), output_hidden_states=True).hidden_states) == 3


def test_a_long_text_changes_the_positions_of_the_subnet_only() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    parent = tiny_parent("llama", rope_parameters=rope, max_position_embeddings=8)
    shape = shape_of(parent)
    subnet = cut(parent, shape, shape.parent)
    logits = subnet(tokens()).logits
    assert subnet.model.rotary_emb.max_seq_len_cached == 12
    assert parent.model.rotary_emb.max_seq_len_cached == 8
    assert torch.equal(logits, parent(tokens()).logits)


GQA_CASES = {
    # heads and groups of the parent -> kept groups and queries per group
    "MHA to MHA": (4, 4, 3, 1),
    "GQA to GQA, fewer groups": (8, 4, 3, 2),
    "GQA to GQA, fewer queries": (8, 2, 2, 3),
    "GQA to MHA": (8, 4, 4, 1),
    "GQA to MQA": (8, 4, 1, 2),
    "MQA to MQA": (4, 1, 1, 3),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", GQA_CASES)
def test_query_heads_stay_with_their_group(case: str, seed: int) -> None:
    heads, groups, kept_groups, kept_queries = GQA_CASES[case]
    parent = tiny_parent("llama", num_attention_heads=heads, num_key_value_heads=groups, num_hidden_layers=1)
    shape = shape_of(parent)
    attention = parent.model.layers[0].self_attn
    for projection in (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
    ):  # each row says which head it is of
        count = projection.out_features // shape.head_dim
        projection.weight.copy_(torch.arange(count).repeat_interleave(shape.head_dim)[:, None])
    attention.o_proj.weight.copy_(torch.arange(heads).repeat_interleave(shape.head_dim)[None])
    ranking = random_ranking(shape, seed)
    permuted = permute(parent, shape, ranking)
    subnet = cut(permuted, shape, Architecture(shape.hidden, (Block(0, kept_groups, kept_queries, 8),)))
    new = subnet.model.layers[0].self_attn
    best_groups = ranking.groups[0][:kept_groups]
    expected = [
        int(group) * shape.queries_per_group + int(query)
        for group in best_groups
        for query in ranking.queries[0][group][:kept_queries]
    ]
    assert new.k_proj.weight[:: shape.head_dim, 0].tolist() == best_groups.tolist()
    assert new.v_proj.weight[:: shape.head_dim, 0].tolist() == best_groups.tolist()
    assert new.q_proj.weight[:: shape.head_dim, 0].tolist() == expected
    assert new.o_proj.weight[0, :: shape.head_dim].tolist() == expected
    assert new.num_key_value_groups == kept_queries
    assert (
        len(set(head_columns(shape, ranking.groups[0], ranking.queries[0])[0].tolist()))
        == heads * shape.head_dim
    )


@pytest.mark.parametrize(
    ("blocks", "hidden", "words"),
    [
        ((Block(0, 3, 1, 8),), 32, "block 0: KV groups 3 exceeds the parent's 2"),
        ((Block(1, 1, 4, 8),), 32, "block 1: queries per group 4 exceeds the parent's 2"),
        ((Block(0, 1, 1, 25),), 32, "block 0: FFN channels 25 exceeds the parent's 24"),
        ((Block(3, 1, 1, 8),), 32, "block 3: layer index 3 exceeds the parent's 2"),
        ((Block(0, 1, 1, 8),), 40, "hidden width 40 exceeds the parent's 32"),
        ((Block(0, 0, 0, 8),), 32, "at least one block; all of them skip it"),
        ((), 32, "needs at least one block"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    blocks: tuple[Block, ...], hidden: int, words: str
) -> None:
    parent, shape = permuted_parent("llama")
    with pytest.raises(InputError, match=words):
        cut(parent, shape, Architecture(hidden, blocks))


def test_parents_that_a_cut_would_spoil_are_refused() -> None:
    parent = tiny_parent("llama")
    parent.model.layers[1].mlp.up_proj = nn.Linear(32, 16, bias=False)
    parent.model.layers[1].mlp.down_proj = nn.Linear(16, 32, bias=False)
    with pytest.raises(InputError, match="block 1 of the parent differs in width"):
        shape_of(parent)

    class Packed(nn.Linear):
        """As quantised and adapter-wrapped projections are: a linear map by name only."""

    parent = tiny_parent("llama")
    parent.model.layers[2].self_attn.v_proj = Packed(32, 16, bias=False)
    with pytest.raises(InputError, match=r"self_attn.v_proj of block 2 is a Packed"):
        shape_of(parent)

    parent = tiny_parent("llama")
    shape = shape_of(parent)
    layer = parent.model.layers[0]
    layer.forward = layer.forward  # what spreading a model over devices does
    with pytest.raises(InputError, match="LlamaDecoderLayer runs a forward set on the object"):
        cut(parent, shape, shape.parent)


@pytest.mark.parametrize("kind", [*REFUSED, "bert", "secateur_llama"])
def test_other_families_are_refused_by_name(kind: str) -> None:
    config = tiny_parent("llama").config
    config.__class__ = type("Other", (type(config),), {"model_type": kind})
    with pytest.raises(InputError, match=f"model family '{kind}' is not supported.*supported are llama"):
        family_of(config)
