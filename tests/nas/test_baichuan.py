"""Baichuan's checkpoints are read as the LLaMA that they are, and those that are none are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.export import save_checkpoint
from nas.families import shape_of
from nas.parent import load_parent, read_config, stored_dtype
from nas.placement import Placement
from nas.ranking import permute
from nas.subnet import cut
from tests.nas.byte_tokenizer import byte_tokenizer
from tests.nas.tiny_models import random_ranking, tiny_parent, tokens

CPU = torch.device("cpu")


def packed(llama: PreTrainedModel) -> dict[str, Tensor]:
    """A LLaMA's tensors as a Baichuan stores them."""
    state = dict(llama.state_dict())
    for index in range(llama.config.num_hidden_layers):
        attention = f"model.layers.{index}.self_attn"
        parts = [state.pop(f"{attention}.{name}_proj.weight") for name in "qkv"]
        state[f"{attention}.W_pack.weight"] = torch.cat(parts)
    return {name: tensor.clone() for name, tensor in state.items()}


def checkpoint(folder: Path, state: dict[str, Tensor], files: int = 1, **settings: Any) -> Path:
    """A folder as one from the Hub, whose own code must not run."""
    folder.mkdir()
    config = dict(
        model_type="baichuan", architectures=["BaichuanForCausalLM"], hidden_size=32, intermediate_size=24,
        num_hidden_layers=3, num_attention_heads=4, vocab_size=61, max_position_embeddings=64,
        rms_norm_eps=1e-6, hidden_act="silu", bos_token_id=1, eos_token_id=2, pad_token_id=0,
        torch_dtype="bfloat16", tie_word_embeddings=False,
        auto_map={
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
    )  # fmt: skip
    config = {name: value for name, value in {**config, **settings}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    for code in ("configuration_baichuan", "modeling_baichuan", "tokenization_baichuan"):
        (folder / f"{code}.py").write_text("raise SystemExit('code that came with a checkpoint was run')\n")
    byte_tokenizer().save_pretrained(folder)
    names = [f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
    if files == 1:
        names = ["model.safetensors"]
    places = {key: names[number % files] for number, key in enumerate(state)}
    for name in names:
        save_file({k: v for k, v in state.items() if places[k] == name}, folder / name, {"format": "pt"})
    if files > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def llama(**settings: Any) -> PreTrainedModel:
    return tiny_parent("llama", num_key_value_heads=4, **settings)


@pytest.mark.parametrize("files", [1, 3])
def test_it_is_the_llama_that_it_was_made_of(files: int, tmp_path: Path) -> None:
    made = llama()
    folder = checkpoint(tmp_path / "baichuan", packed(made), files)
    parent, tokenizer = load_parent(str(folder), CPU, torch.float32)
    assert type(parent) is LlamaForCausalLM and parent.config.model_type == "llama"
    assert torch.equal(parent(tokens()).logits, made(tokens()).logits)
    assert tokenizer("a b").input_ids
    assert stored_dtype(str(folder), torch.float32) == torch.bfloat16


def test_the_second_ones_head_is_folded_into_its_weights(tmp_path: Path) -> None:
    made = llama()
    folder = checkpoint(tmp_path / "baichuan", packed(made), z_loss_weight=0)
    parent, _ = load_parent(str(folder), CPU, torch.float32)
    stream = made.model(tokens()).last_hidden_state
    expected = functional.linear(stream, functional.normalize(made.lm_head.weight))
    torch.testing.assert_close(parent(tokens()).logits, expected)
    assert not torch.allclose(parent(tokens()).logits, made(tokens()).logits)


def test_its_weights_may_stay_in_their_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "baichuan", packed(llama()), z_loss_weight=0, torch_dtype="float32")
    before = (folder / "model.safetensors").read_bytes()
    parent, _ = load_parent(str(folder), CPU, torch.float32)
    placed, _ = load_parent(str(folder), CPU, torch.float32, placement=Placement(CPU, tmp_path))
    with torch.no_grad():
        assert torch.equal(placed(tokens()).logits, parent(tokens()).logits)
    assert (folder / "model.safetensors").read_bytes() == before


def test_what_is_cut_out_of_it_is_a_plain_llama(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "baichuan", packed(llama()))
    parent, _ = load_parent(str(folder), CPU, torch.float32)
    shape = shape_of(parent)
    permuted = permute(parent, shape, random_ranking(shape))
    architecture = Architecture(32, tuple(Block(index, 2, 1, 16) for index in range(3)))
    subnet = cut(permuted, shape, architecture, own=True)
    out = save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama" and "normed_head" not in config
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(loaded(tokens()).logits, subnet(tokens()).logits)


def test_one_without_rotary_positions_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "baichuan", packed(llama()), max_position_embeddings=None, model_max_length=64
    )
    with pytest.raises(InputError, match="hidden width 32, has ALiBi biases .* take one of 7B"):
        read_config(str(folder))
    with pytest.raises(InputError, match="ALiBi"):
        load_parent(str(folder), CPU, torch.float32)


def test_pickled_weights_and_tokenizers_with_code_are_refused(tmp_path: Path) -> None:
    state = packed(llama())
    folder = checkpoint(tmp_path / "pickled", state)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="no weights in safetensors"):
        load_parent(str(folder), CPU, torch.float32)
    folder = checkpoint(tmp_path / "coded", state)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"of sentencepiece")
    settings = {"tokenizer_class": "BaichuanTokenizer"}
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]}  # type: ignore[assignment]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="has no tokenizer.json"):
        load_parent(str(folder), CPU, torch.float32)


def test_a_lost_tensor_is_missed(tmp_path: Path) -> None:
    state = packed(llama())
    del state["model.layers.1.self_attn.W_pack.weight"]
    folder = checkpoint(tmp_path / "baichuan", state)
    with pytest.raises(InputError, match="lacks 3 weights, model.layers.1.self_attn.k_proj.weight"):
        load_parent(str(folder), CPU, torch.float32)
