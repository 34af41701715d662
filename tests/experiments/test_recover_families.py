"""What is recovered of a fused or transposed family is saved with the family's own matrices again."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from experiments import recover
from experiments.command_line import run
from nas.architecture import Architecture, Block
from nas.export import save_checkpoint
from nas.families import plain, shape_of
from nas.laws.saving import load
from nas.laws.tiny import random_model
from nas.subnet import cut
from tests.experiments.toy_job import SEQ_LEN, make_toy
from tests.nas.tiny_models import config_of

CUTS = {
    "mixed": ((0, 1, 2, 10), (1, 2, 1, 0), (2, 2, 2, 16)),
    "plain": ((0, 4, 2, 16), (2, 4, 2, 16)),  # all heads of both
}
FAMILIES = {"gpt2": ("attn.c_attn.weight", "c_fc.weight"), "phi3": ("qkv_proj.weight", "gate_up_proj.weight")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a random parent of each family with the tokenizer of it."""
    folder = make_toy(tmp_path_factory.mktemp("toy"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "parent")
    for name in FAMILIES:
        config = config_of(name, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None)
        random_model(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_is_recovered(name: str, kind: str, method: str, toy: Path, tmp_path: Path) -> None:
    if method == "lora":
        pytest.importorskip("peft", reason="LoRA needs the optional extra secateur[lora]")
    parent = plain(load(toy / name))
    shape = shape_of(parent)
    groups, queries = shape.kv_groups, shape.queries_per_group
    blocks = [Block(i, min(g, groups), min(q, queries), f) for i, g, q, f in CUTS[kind]]
    architecture = Architecture(shape.hidden, tuple(blocks))
    subnet = cut(parent, shape, architecture)
    before = save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / "before")
    given = {
        "model": before, "parent": toy / name, "corpus": toy / "corpus", "cache": toy / "cache",
        "out": tmp_path / "out", "seq-len": SEQ_LEN, "steps": 6, "learning-rate": 0.003, "check-every": 3,
        "choice-windows": 4, "final-windows": 4, "test-windows": 4, "method": method,
    }  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    assert run(recover.Settings, recover.main, [*words, "--trust-remote-code"]) == 0
    scores = json.loads((tmp_path / "out" / "recovery.json").read_text())["scores"]
    assert scores["after"]["validation"]["nll"] < scores["before"]["validation"]["nll"]
    after = tmp_path / "out" / "checkpoint"
    assert json.loads((after / "config.json").read_text()) == json.loads((before / "config.json").read_text())
    old, new = load(before).state_dict(), load(after).state_dict()
    assert {key: old[key].shape for key in old} == {key: new[key].shape for key in new}
    for ending in FAMILIES[name]:
        changed = [not torch.equal(old[key], new[key]) for key in old if key.endswith(ending)]
        assert changed and all(changed)
