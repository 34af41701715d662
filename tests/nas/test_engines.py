"""Engines: what a profile leaves of a space can be written; what cannot run is refused in a sentence."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, dynamic_module_utils

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.engines import ENGINES, vllm
from nas.engines.checkpoint import Widths, open_checkpoint
from nas.engines.engine import Choices
from nas.export import save_checkpoint
from nas.families import shape_of
from nas.proposals import keep_attention
from nas.shape import architecture_of
from nas.space import SearchSpace, default_space
from nas.subnet import cut
from tests.nas.tiny_models import CUTS, PARENTS, architecture_of_cut, permuted_parent, tiny_parent, tokens

QWEN3 = dict(attention_bias=False, tie_word_embeddings=True)
WITHOUT = Choices(tokenizer=False)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    with torch.no_grad():
        yield


def saved(parent: PreTrainedModel, architecture: Architecture, folder: Path) -> Path:
    """The checkpoint of a subnet."""
    shape = shape_of(parent)
    subnet = cut(parent, shape, architecture, own=True)
    return save_checkpoint(subnet, parent.config, shape, architecture, folder)


def sampled(space: SearchSpace, count: int, seed: int = 0) -> list[Architecture]:
    """Architectures drawn from a space, with attention somewhere."""
    rng = np.random.default_rng(seed)
    rows = keep_attention(space, rng.integers(0, space.depths, (count, len(space.depths))))
    return [architecture_of(widths, space.shape) for widths in space.widths(rows)]


def profile(target: str, parent: PreTrainedModel, added_biases: bool = False) -> SearchSpace:
    space = default_space(shape_of(parent), steps=4)
    return ENGINES[target].restrict(space, parent.config.to_dict(), added_biases)


LAW = {
    "gguf": {
        "llama": {}, "llama-biased": {}, "llama-mha": {}, "mistral": {}, "qwen2": {}, "qwen3": QWEN3,
    },
    "vllm": {name: {} for name in PARENTS if name.split("-")[0] in vllm.SUPPORTED},
    "hf": {name: {} for name in PARENTS},
}  # fmt: skip


@pytest.mark.parametrize("target, name", [(target, name) for target, names in LAW.items() for name in names])
def test_what_is_found_under_a_target_can_be_exported_to_it(target: str, name: str, tmp_path: Path) -> None:
    parent = tiny_parent(name, intermediate_size=96, **LAW[target][name])
    space = profile(target, parent)
    for number, architecture in enumerate(sampled(space, 8)):
        folder = saved(parent, architecture, tmp_path / str(number))
        notes = ENGINES[target].write(open_checkpoint(folder), tmp_path / f"{number} out", WITHOUT)
        assert notes and (tmp_path / f"{number} out").exists()


def test_profiles_leave_what_engines_can_run() -> None:
    parent = tiny_parent("llama", intermediate_size=96)
    whole = profile("hf", parent)
    assert whole == default_space(shape_of(parent), steps=4)
    gguf, served = profile("gguf", parent), profile("vllm", parent)
    assert gguf.knobs["1.ffn"] == (0, 32, 64, 96)
    assert gguf.knobs["1.kv_groups"] == whole.knobs["1.kv_groups"] == (0, 1, 2)
    assert served.knobs["0.kv_groups"] == (2,) and served.knobs["1.kv_groups"] == (0, 2)
    assert served.knobs["1.queries_per_group"] == (2,) and served.knobs["0.ffn"] == whole.knobs["0.ffn"]
    with pytest.raises(InputError, match="subnets of the family 'gpt2' cannot be exported to vllm"):
        profile("vllm", tiny_parent("gpt2"))


UNABLE = {
    "gemma": "models of the family 'gemma' cannot be exported to gguf; llama, mistral, qwen2, qwen3 can",
    "smollm3": "models of the family 'smollm3' cannot",
    "mistral-window": "attention sees a window of 5 of 64 positions",
    "qwen2-window": "attention sees a window of 5 of 64 positions",
    "qwen3": "Qwen 3 with biases in its attention",
}


@pytest.mark.parametrize("name", UNABLE)
def test_parents_that_an_engine_cannot_run_are_refused_before_a_search(name: str, tmp_path: Path) -> None:
    parent = tiny_parent(name)
    with pytest.raises(InputError, match=UNABLE[name]):
        profile("gguf", parent)
    folder = saved(parent, architecture_of_cut("shallow", shape_of(parent)), tmp_path / "checkpoint")
    with pytest.raises(InputError, match=UNABLE[name]):
        ENGINES["gguf"].write(open_checkpoint(folder), tmp_path / "model.gguf", WITHOUT)
    assert not (tmp_path / "model.gguf").exists()


def test_settings_that_an_engine_cannot_run_are_refused() -> None:
    untied = tiny_parent("qwen3", attention_bias=False)
    for target, parent, sentence in (
        ("gguf", untied, "only if its head is tied"),
        ("gguf", tiny_parent("llama", rope_parameters=YARN), "scaled by 'yarn'"),
        ("gguf", tiny_parent("llama", hidden_act="gelu"), "activation 'gelu'"),
    ):
        with pytest.raises(InputError, match=sentence):
            profile(target, parent)
    for target, parent in (("vllm", tiny_parent("llama")), ("gguf", tiny_parent("qwen3", **QWEN3))):
        with pytest.raises(InputError, match="biases that --repair mean_bias adds"):
            profile(target, parent, added_biases=True)
    assert profile("gguf", tiny_parent("llama"), added_biases=True)


YARN = dict(rope_type="yarn", rope_theta=1e4, factor=2.0, original_max_position_embeddings=32)


def test_untied_qwen_3_is_refused_only_where_its_blocks_differ(tmp_path: Path) -> None:
    parent = tiny_parent("qwen3", attention_bias=False)
    for kind in ("uniform", "narrow"):
        folder = saved(parent, architecture_of_cut(kind, shape_of(parent)), tmp_path / kind)
        out = tmp_path / f"{kind}.gguf"
        if kind == "uniform":
            assert "llama.cpp's qwen3" in ENGINES["gguf"].write(open_checkpoint(folder), out, WITHOUT)[0]
            continue
        with pytest.raises(InputError, match="only if its head is tied"):
            ENGINES["gguf"].write(open_checkpoint(folder), out, WITHOUT)


@pytest.mark.parametrize("target", ["gguf", "vllm"])
def test_parts_of_heads_are_refused(target: str, tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    architecture = Architecture(32, tuple(Block(index, 2, 2, 24, 4) for index in range(3)))
    order = [torch.arange(4).repeat(2, 1) for _ in range(3)]
    subnet = cut(parent, shape, architecture, rotary=order, own=True)
    folder = save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / "checkpoint")
    with pytest.raises(InputError, match="block 0 of .* keeps parts of its heads"):
        ENGINES[target].write(open_checkpoint(folder), tmp_path / "out", WITHOUT)


@pytest.mark.parametrize("kind", CUTS)
def test_the_tensors_say_how_wide_a_block_is(kind: str, tmp_path: Path) -> None:
    parent, shape = permuted_parent("mistral")
    architecture = architecture_of_cut(kind, shape)
    found = open_checkpoint(saved(parent, architecture, tmp_path / "checkpoint"))
    assert found.blocks == tuple(Widths(b.heads, b.kv_groups, b.ffn) for b in architecture.blocks)
    assert found.family == "mistral" and found.head_dim == shape.head_dim == 12
    assert found.is_uniform == (kind in ("uniform", "shallow", "one block"))


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for path in folder.glob("*.safetensors") for name, weight in load_file(path).items()}


@pytest.mark.parametrize("kind", ["uniform", "narrow", "all at once"])
def test_hf_is_the_checkpoint_in_other_files(kind: str, tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama-biased")
    folder = saved(parent, architecture_of_cut(kind, shape), tmp_path / "checkpoint")
    same, half = tmp_path / "same", tmp_path / "half"
    ENGINES["hf"].write(open_checkpoint(folder), same, Choices(max_shard_size="4KB"))
    ENGINES["hf"].write(open_checkpoint(folder), half, Choices(dtype="bf16"))
    before, after = tensors_in(folder), tensors_in(same)
    assert len(list(same.glob("*.safetensors"))) > 2 and set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    ids = tokens()
    original, again, narrow = (
        AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True, dtype="auto").eval()
        for place in (folder, same, half)
    )
    assert torch.equal(original(ids).logits, again(ids).logits)
    assert {weight.dtype for weight in narrow.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(narrow(ids).logits.float(), original(ids).logits, rtol=0.1, atol=0.3)
    others = {path.name for path in folder.iterdir()} - {"model.safetensors", "__pycache__"}
    assert others <= {path.name for path in same.iterdir()}
    assert ENGINES["hf"].write(open_checkpoint(same), tmp_path / "one", Choices())
    assert torch.equal(tensors_in(tmp_path / "one")["model.norm.weight"], before["model.norm.weight"])


def test_nothing_half_is_left_and_nothing_is_overwritten(tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    folder = saved(parent, architecture_of_cut("narrow", shape), tmp_path / "in" / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="blk.2.ffn_down.weight reaches 1e.06, too large for f16"):
        ENGINES["gguf"].write(open_checkpoint(folder), tmp_path / "model.gguf", WITHOUT)
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.down_proj\.weight holds numbers that f16 cannot"):
        ENGINES["hf"].write(open_checkpoint(folder), tmp_path / "model", Choices(dtype="f16"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "modules"] == ["in"]
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        ENGINES["gguf"].write(
            open_checkpoint(folder), tmp_path / "model.gguf", replace(WITHOUT, dtype="bf16")
        )
    assert (tmp_path / "model.gguf").read_text() == "mine"
    with pytest.raises(InputError, match="--max-shard-size is '5 gigs'"):
        ENGINES["hf"].write(open_checkpoint(folder), tmp_path / "model", Choices(max_shard_size="5 gigs"))


def test_no_tensor_is_left_out_unsaid(tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    folder = saved(parent, architecture_of_cut("narrow", shape), tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    for name in ("lm_head.bias", "model.layers.1.self_attn.q_norm.weight"):
        save_file({**weights, name: torch.ones(8)}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"has the tensor {name}, for which llama.cpp has no place"):
            ENGINES["gguf"].write(open_checkpoint(folder), tmp_path / "model.gguf", WITHOUT)


def test_folders_that_hold_no_checkpoint_are_refused(tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    folder = saved(parent, architecture_of_cut("uniform", shape), tmp_path / "run" / "checkpoint")
    with pytest.raises(InputError, match="did you mean"):
        open_checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match="cannot be read"):
        open_checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        open_checkpoint(folder)
    (folder / "model.safetensors").write_text("half")
    with pytest.raises(InputError, match="cannot be read"):
        open_checkpoint(folder)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="names the file .*, which is not there"):
        open_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(InputError, match="cannot be read|names no model|not there"):
        open_checkpoint(folder)


def test_choices_that_an_engine_does_not_have_are_refused() -> None:
    for target, choices, sentence in (
        ("hf", Choices(dtype="q8_0"), "--dtype is q8_0, and hf takes auto, f32, f16, bf16"),
        ("gguf", Choices(form="block_configs"), "--form is block_configs, and gguf takes auto"),
    ):
        with pytest.raises(InputError, match=sentence):
            ENGINES[target].check(target, choices)


def test_the_card_says_what_an_export_changed(tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    plain = saved(parent, architecture_of_cut("uniform", shape), tmp_path / "plain")
    uneven = saved(parent, Architecture(32, (Block(0, 2, 2, 7), Block(1, 0, 0, 24))), tmp_path / "uneven")
    for folder in (plain, uneven):
        (folder / "README.md").write_text("# A subnet\n")
        (folder / "README.md").chmod(0o444)  # as in some caches

    def card(target: str, folder: Path, **choices: str) -> str:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        ENGINES[target].write(open_checkpoint(folder), out, Choices(**choices))
        return (out / "README.md").read_text()

    for target in ("hf", "vllm"):
        assert card(target, plain) == "# A subnet\n"
        told = card(target, plain, dtype="bf16")
        assert told.startswith("# A subnet\n\n## Exported\n\n") and "in bfloat16" in told
        assert "loads as above" in told and "not measured again" in told
    assert "as DeciLM" in card("vllm", uneven) and "Transformers does not load it" in card("vllm", uneven)
    assert "In transformers it loads as above" in card("vllm", uneven, form="per_layer_config")
    (plain / "README.md").unlink()
    ENGINES["hf"].write(open_checkpoint(plain), tmp_path / "none", Choices(dtype="bf16"))
    assert not (tmp_path / "none" / "README.md").exists()


@pytest.mark.parametrize("target", ["hf", "vllm"])
def test_a_chosen_dtype_is_said_once(target: str, tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    folder = saved(parent, architecture_of_cut("uniform", shape), tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as older versions of transformers wrote it
    (folder / "config.json").write_text(json.dumps(config))
    ENGINES[target].write(open_checkpoint(folder), tmp_path / "out", Choices(dtype="bf16"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == "bfloat16" and "torch_dtype" not in written
