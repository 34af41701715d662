"""Peft trains adapters on what was saved, for blocks that differ and for fused and transposed matrices."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from nas.laws.saving import load, saved
from tests.nas.tiny_models import case_of, tokens

peft = pytest.importorskip("peft", reason="LoRA needs the optional extra secateur[lora]")

# Parents -> names of the matrices that their checkpoints have, which is what adapters are put on.
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "qwen3_moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def adapted(name: str, model: Any) -> Any:
    """With adapters on all of these; peft must be told that GPT-2's matrices are (in, out)."""
    config = peft.LoraConfig(
        r=4, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
        return peft.get_peft_model(model, config)


def loss_of(model: Any, ids: Tensor) -> Tensor:
    return model(ids, labels=ids).loss


@pytest.mark.parametrize("kind", ["uniform", "narrow", "all at once"])
@pytest.mark.parametrize("name", TARGETS)
def test_adapters_are_trained_on_a_checkpoint_and_merged(name: str, kind: str) -> None:
    with saved(case_of(name), kind) as (_, folder):
        model = load(folder)
    ids = tokens()
    with torch.no_grad():
        before = model(ids).logits
    training = adapted(name, model)
    wanted = [weight for weight in training.parameters() if weight.requires_grad]
    assert wanted and all(
        "lora" in key for key, weight in training.named_parameters() if weight.requires_grad
    )
    optimizer = torch.optim.Adam(wanted, lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of(training, ids)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        trained = training(ids).logits
        assert loss_of(training, ids).item() < losses[0]
        merged = training.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, trained, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(trained, before)
    assert type(merged) is type(model)
