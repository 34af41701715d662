"""What is written for vLLM, held against the fields that its code reads; it cannot be run here."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, dynamic_module_utils

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.engines import ENGINES
from nas.engines.checkpoint import open_checkpoint
from nas.engines.engine import Choices
from nas.export import save_checkpoint
from nas.families import shape_of
from nas.subnet import cut
from tests.nas.tiny_models import architecture_of_cut, tiny_parent, tokens

UNEVEN = Architecture(32, (Block(0, 2, 2, 7), Block(1, 0, 0, 24), Block(2, 2, 2, 0)))
"""The heads that all blocks have, which vLLM wants; everything else by block."""


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    with torch.no_grad():
        yield


def exported(
    parent: PreTrainedModel, architecture: Architecture, folder: Path, **choices: Any
) -> tuple[PreTrainedModel, Path]:
    shape = shape_of(parent)
    subnet = cut(parent, shape, architecture, own=True)
    save_checkpoint(subnet, parent.config, shape, architecture, folder / "checkpoint")
    ENGINES["vllm"].write(open_checkpoint(folder / "checkpoint"), folder / "out", Choices(**choices))
    return subnet, folder / "out"


def built_by_decilm(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that vLLM's DeciLMForCausalLM builds, of what it reads of the
    configuration and nothing else (its attention and MLP are LLaMA's)."""
    width, dim, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    bias = getattr(config, "attention_bias", False) or getattr(config, "bias", False)
    bias_o = bias
    if hasattr(config, "qkv_bias"):
        bias = config.qkv_bias
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, width), "model.norm.weight": (width,),
    }  # fmt: skip
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    for index in range(config.num_hidden_layers):
        block, prefix = config.block_configs[index], f"model.layers.{index}."
        assert index or not block.attention.no_op, "the first block adds to a residual that is not there"
        if not block.attention.no_op:
            groups = heads // block.attention.n_heads_in_group
            for name, rows in (("q", heads), ("k", groups), ("v", groups)):
                shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows * dim, width)
                if bias:
                    shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows * dim,)
            shapes[f"{prefix}self_attn.o_proj.weight"] = (width, heads * dim)
            if bias_o:
                shapes[f"{prefix}self_attn.o_proj.bias"] = (width,)
            shapes[f"{prefix}input_layernorm.weight"] = (width,)
        if not block.ffn.no_op:
            assert not hasattr(block.ffn, "ffn_mult"), "it would be rounded up to 256"
            channels = block.ffn.intermediate_size
            assert getattr(block.ffn, "hidden_act", config.hidden_act) == "silu"
            for name, shape in (
                ("gate", (channels, width)),
                ("up", (channels, width)),
                ("down", (width, channels)),
            ):
                shapes[f"{prefix}mlp.{name}_proj.weight"] = shape
                if getattr(config, "mlp_bias", False):
                    shapes[f"{prefix}mlp.{name}_proj.bias"] = shape[:1]
            shapes[f"{prefix}post_attention_layernorm.weight"] = (width,)
    return shapes


@pytest.mark.parametrize("name", ["llama", "llama-biased", "llama-mha", "mistral", "qwen2"])
def test_decilm_builds_the_subnet(name: str, tmp_path: Path) -> None:
    parent = tiny_parent(name)
    groups = shape_of(parent).kv_groups
    blocks = [
        replace(b, kv_groups=groups, queries_per_group=4 // groups) if b.heads else b for b in UNEVEN.blocks
    ]
    subnet, out = exported(parent, Architecture(32, tuple(blocks)), tmp_path)
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    assert config.model_type == "nemotron-nas" and config.architectures == ["DeciLMForCausalLM"]
    stored = load_file(out / "model.safetensors")
    assert built_by_decilm(config) == {key: tuple(weight.shape) for key, weight in stored.items()}
    state = subnet.state_dict()
    assert all(torch.equal(state[key], weight) for key, weight in stored.items())
    assert config.head_dim == shape_of(parent).head_dim
    for setting in ("rope_parameters", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(config, setting) == getattr(subnet.config, setting), setting
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["block_configs"][1]["attention"] == {"no_op": True, "replace_with_linear": False}
    assert not (out / "modeling_subnet.py").exists()


def test_kv_heads_may_differ_between_blocks(tmp_path: Path) -> None:
    parent = tiny_parent("llama", num_attention_heads=4, num_key_value_heads=2)
    mixed = Architecture(32, (Block(0, 1, 2, 24), Block(1, 2, 1, 24), Block(2, 0, 0, 8)))
    _, out = exported(parent, mixed, tmp_path)
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    assert config.num_attention_heads == 2
    assert [getattr(b.attention, "n_heads_in_group", None) for b in config.block_configs] == [2, 1, None]


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "qwen3", "smollm3", "granite", "gemma2"])
def test_the_transformers_backend_gets_the_model_without_its_head(name: str, tmp_path: Path) -> None:
    parent = tiny_parent(name)
    subnet, out = exported(parent, UNEVEN, tmp_path, form="per_layer_config")
    ids = tokens()
    body, loading = AutoModel.from_pretrained(out, trust_remote_code=True, output_loading_info=True)
    assert not loading["missing_keys"] and set(loading["unexpected_keys"]) <= {"lm_head.weight"}
    assert type(body) is type(subnet.model)
    assert torch.equal(body.eval()(ids).last_hidden_state, subnet.model(ids).last_hidden_state)
    whole = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    assert torch.equal(whole(ids).logits, subnet(ids).logits)
    # As the backend makes it: of the configuration alone.
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    made = AutoModel.from_config(config, trust_remote_code=True)
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in body.state_dict().items()
    }
    # What it reads of each block: heads are global, and no block without attention says otherwise.
    stored = json.loads((out / "config.json").read_text())
    assert stored["num_attention_heads"] == 4 and stored["num_key_value_heads"] == shape_of(parent).kv_groups
    heads = {"num_attention_heads", "num_key_value_heads"}
    assert not any(heads & set(own) for own in stored["per_layer_config"].values())
    assert stored["per_layer_config"]["1"]["skip"] == ["attention"]
    slots = [block.self_attn.layer_idx for block in made.layers if hasattr(block.self_attn, "layer_idx")]
    assert slots[0] == 0 and len(set(slots)) == 2


def test_uniform_subnets_are_plain(tmp_path: Path) -> None:
    parent = tiny_parent("llama")
    _, out = exported(parent, architecture_of_cut("uniform", shape_of(parent)), tmp_path)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert not list(out.glob("*.py"))


def test_dtypes_are_written_into_the_configuration(tmp_path: Path) -> None:
    _, out = exported(tiny_parent("llama"), UNEVEN, tmp_path, dtype="bf16")
    assert AutoConfig.from_pretrained(out, trust_remote_code=True).dtype == torch.bfloat16
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_what_vllm_cannot_run_is_refused(tmp_path: Path) -> None:
    headless = Architecture(32, (Block(0, 0, 0, 24), Block(1, 2, 2, 24)))
    uneven_heads = Architecture(32, (Block(0, 2, 2, 24), Block(1, 1, 2, 24)))
    for number, (name, architecture, form, sentence) in enumerate(
        (
            ("llama", headless, "auto", "the first block has no attention"),
            ("llama", uneven_heads, "auto", "the blocks have 2, 4 query heads"),
            ("qwen3", uneven_heads, "auto", "the blocks have 2, 4 query heads"),
            ("qwen3", UNEVEN, "block_configs", "DeciLM is LLaMA, and 'qwen3' is not"),
            ("mistral-window", UNEVEN, "block_configs", "a window of 5 of 64 positions"),
        )
    ):
        with pytest.raises(InputError, match=sentence):
            exported(tiny_parent(name), architecture, tmp_path / str(number), form=form)
    with pytest.raises(InputError, match="is plain: give --form auto"):
        exported(tiny_parent("llama"), Architecture(32, (Block(1, 2, 2, 24),)), tmp_path / "plain",
                 form="per_layer_config")  # fmt: skip
    with pytest.raises(InputError, match="a bias that vLLM has no place for"):
        parent = tiny_parent("llama")
        shape = shape_of(parent)
        subnet = cut(parent, shape, UNEVEN, own=True)
        subnet.model.layers[0].mlp.down_proj.bias = torch.nn.Parameter(torch.ones(32))
        save_checkpoint(subnet, parent.config, shape, UNEVEN, tmp_path / "biased")
        ENGINES["vllm"].write(open_checkpoint(tmp_path / "biased"), tmp_path / "out", Choices())
