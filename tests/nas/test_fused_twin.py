"""A trained LLaMA and the same weights as a fused family are one model, cut and repaired alike."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from nas.architecture import Architecture, Block
from nas.calibration import calibrate
from nas.families import layers_of, shape_of
from nas.laws.case import check_same
from nas.parent import DEMO, load_parent
from nas.repair.bank import Bank, attention_key, mlp_key, repair_block
from nas.subnet import cut


def as_phi3(folder: Path) -> Path:
    """The embedded parent's weights as a checkpoint of phi3."""
    llama = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    old = llama.config
    settings = {
        name: getattr(old, name)
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act",
            "rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id",
        )
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", pad_token_id=0, **settings))
    state = dict(llama.state_dict())
    for index in range(old.num_hidden_layers):
        block = f"model.layers.{index}"
        for fused, names in (
            ("self_attn.qkv_proj", [f"self_attn.{name}_proj" for name in "qkv"]),
            ("mlp.gate_up_proj", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            parts = [state.pop(f"{block}.{name}.weight") for name in names]
            state[f"{block}.{fused}.weight"] = torch.cat(parts)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return folder


def test_what_is_cut_out_of_either_is_the_same_model(tmp_path: Path) -> None:
    cpu, windows = torch.device("cpu"), torch.randint(3, 500, (4, 32))
    llama, phi3 = (load_parent(str(where), cpu, torch.float32)[0] for where in (DEMO, as_phi3(tmp_path)))
    shape = shape_of(llama)
    assert replace(shape_of(phi3), family="llama") == shape
    logits = []
    for parent in (llama, phi3):
        bank = repair_block(
            parent, shape, calibrate(parent, windows), 1,
            {shape.queries_per_group: (1,)}, (shape.ffn // 2,),
        )  # fmt: skip
        blocks = [block for block in shape.parent.blocks if block.source != 1]
        blocks.insert(1, Block(1, 1, shape.queries_per_group, shape.ffn // 2))
        whole = {
            key: matrix
            for block in blocks if block.source != 1
            for key, matrix in (
                (attention_key(block.source, block.kv_groups, block.queries_per_group),
                 layers_of(parent)[block.source].o_proj.weight),
                (mlp_key(block.source, block.ffn), layers_of(parent)[block.source].down_proj.weight),
            )
        }  # fmt: skip
        both = Bank({**whole, **bank.matrices}, {})
        subnet = cut(parent, shape, Architecture(shape.hidden, tuple(blocks)), both)
        with torch.no_grad():
            logits += [parent(windows).logits, subnet(windows).logits]
    check_same(logits[2], logits[0], "logits of the twins")
    torch.testing.assert_close(logits[3], logits[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits[1], logits[0], atol=0.1)
