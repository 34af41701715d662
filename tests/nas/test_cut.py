"""What a cut does that is not a law of every family (see `test_laws`)."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.families import REFUSED, family_of, shape_of
from nas.ranking import head_columns, permute
from nas.subnet import cut
from tests.nas.tiny_models import (
    architecture_of_cut,
    config_of,
    permuted_parent,
    random_ranking,
    same,
    tiny_parent,
    tokens,
)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


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


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "multiplies in 2 slices"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "adds to its normed stream"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "by the number of their block"),
        ("opt", {"do_layer_norm_before": False}, "as OPT-350M"),
        ("stablelm", {"qk_layernorm": True}, "a norm of its own for every head"),
        ("cohere", {"use_qk_norm": True}, "gains of its own for every head"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "plain MLPs in some blocks"),
    ],
)
def test_settings_that_a_cut_would_spoil_are_refused(
    name: str, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        family_of(config_of(name, **settings))


@pytest.mark.parametrize("kind", [*REFUSED, "bert", "secateur_llama"])
def test_other_families_are_refused_by_name(kind: str) -> None:
    config = tiny_parent("llama").config
    config.__class__ = type("Other", (type(config),), {"model_type": kind})
    with pytest.raises(InputError, match=f"model family '{kind}' is not supported.*supported are llama"):
        family_of(config)
