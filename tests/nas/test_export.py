"""A saved subnet is the subnet, wherever it is loaded, and does not load as anything else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TokenizersBackend,
    dynamic_module_utils,
)
from transformers.integrations.heterogeneity import configuration_utils as heterogeneity

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.export import needs_code, save_again, save_checkpoint
from nas.families import plain, shape_of
from nas.laws.saving import load
from nas.residual import measure_stream, rotate_stream
from nas.subnet import cut
from tests.nas.tiny_models import (
    CUTS,
    NARROWABLE,
    PARENTS,
    architecture_of_cut,
    permuted_parent,
    tiny_parent,
    tokens,
)

PLAIN = ("uniform", "shallow", "one block")
SQUARE = (
    "helium", "stablelm", "stablelm-parallel", "phi", "gpt2", "gpt_neo", "gptj", "gpt_neox",
    "gpt_neox-serial", "opt", "falcon", "falcon-groups", "falcon-alibi", "bloom",
)  # fmt: skip
"""Parents whose heads together are always as wide as the hidden width: plain ones lose no heads."""
every_parent = pytest.mark.parametrize("name", PARENTS)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Code that checkpoints carry is run from a cache in the home folder: here from another.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    warned: list[str] = []  # that one width was read where blocks have their own
    monkeypatch.setattr(heterogeneity.logger, "warning_once", warned.append)
    with torch.no_grad():
        yield
    assert not warned


def saved(
    name: str, kind: str, folder: Path, hidden: int = 32, **settings: object
) -> tuple[PreTrainedModel, Path]:
    """A subnet and the checkpoint written of it."""
    parent, shape = permuted_parent(name)
    architecture = replace(architecture_of_cut(kind, shape), hidden=hidden)
    subnet = cut(parent, shape, architecture, own=True)
    return subnet, save_checkpoint(subnet, parent.config, shape, architecture, folder, **settings)


def test_a_rotated_stream_is_saved_like_any_other(tmp_path: Path) -> None:
    parent = tiny_parent("llama-biased")  # whose head is tied until then
    rotated = rotate_stream(parent, measure_stream(parent, tokens(batch=4)).basis)
    shape = shape_of(rotated)
    for kind in ("uniform", "narrow"):
        architecture = replace(architecture_of_cut(kind, shape), hidden=20)
        subnet = cut(rotated, shape, architecture, own=True)
        model = load(save_checkpoint(subnet, rotated.config, shape, architecture, tmp_path / kind))
        assert torch.equal(model(tokens()).logits, subnet(tokens()).logits)
        assert model.num_parameters() == subnet.num_parameters()


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("kind", ["uniform", "all at once", "no first attention"])
def test_generate_gives_the_same_with_every_cache(name: str, kind: str, tmp_path: Path) -> None:
    model = load(saved(name, kind, tmp_path / "checkpoint")[1])
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    ids, mask = tokens(), torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0  # padded on the left, as batches of prompts are
    expected = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
    static = dict(cache_implementation="static")
    for use in (dict(), static, dict(prefill_chunk_size=5), dict(prefill_chunk_size=5, **static)):
        assert torch.equal(model.generate(ids, attention_mask=mask, **use, **settings), expected), use


@every_parent
def test_what_one_width_describes_is_a_plain_checkpoint(name: str) -> None:
    parent, shape = permuted_parent(name)
    for kind in CUTS:
        architecture = architecture_of_cut(kind, shape)
        subnet = cut(parent, shape, architecture)
        whole = architecture.blocks[0].heads == shape.kv_groups * shape.queries_per_group
        if name in SQUARE:
            expected = kind in PLAIN and whole and (name != "bloom" or kind == "shallow")
        else:
            expected = kind in PLAIN
        assert needs_code(subnet, parent.config, shape, architecture) == (not expected), kind
    if name in NARROWABLE:
        architecture = replace(architecture_of_cut("uniform", shape), hidden=20)
        subnet = cut(parent, shape, architecture)
        # Helium's own output matrix is always square.
        assert needs_code(subnet, parent.config, shape, architecture) == (name == "helium")


HEADS = {
    # parents of four KV groups with a query each, cut to three: 32 hidden channels do not divide by them
    "llama": "mistral",
    "llama-biased": "secateur_llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "secateur_gemma2",
    "gemma3_text": "secateur_gemma3_text",
    "smollm3": "smollm3",
    "granite": "granite",
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_do_not_divide_the_hidden_width(name: str, tmp_path: Path) -> None:
    parent = tiny_parent(name, num_key_value_heads=4)
    shape = shape_of(parent)
    architecture = Architecture(32, tuple(Block(index, 3, 1, 16) for index in range(3)))
    subnet = cut(parent, shape, architecture, own=True)
    model = load(save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / "checkpoint"))
    assert model.config.model_type == HEADS[name]
    assert torch.equal(model(tokens()).logits, subnet(tokens()).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "llama-biased"])  # the second is tied
def test_dtype_and_tie_are_kept(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    parent = tiny_parent(name, dtype=dtype)
    shape = shape_of(parent)
    for kind in ("narrow", "uniform"):
        architecture = architecture_of_cut(kind, shape)
        subnet = cut(parent, shape, architecture, own=True)
        folder = save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / kind)
        model = load(folder)
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        assert torch.equal(model(tokens()).logits, subnet(tokens()).logits)
        tied = name == "llama-biased"
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == (not tied)


def test_a_loaded_subnet_can_change_its_attention_and_be_trained(tmp_path: Path) -> None:
    model = load(saved("llama", "all at once", tmp_path / "checkpoint")[1])
    before = model(tokens()).logits
    model.set_attn_implementation("eager")
    out = model(tokens(), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(out.logits, before, rtol=1e-4, atol=1e-4)
    assert len(out.attentions) == 1 and len(out.hidden_states) == 3
    model.gradient_checkpointing_enable()
    with torch.enable_grad():
        model.train()(tokens(), labels=tokens()).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def word_tokenizer() -> PreTrainedTokenizerBase:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = TokenizersBackend(tokenizer_object=words, unk_token="<unk>", eos_token="b")
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


def test_all_that_belongs_to_a_checkpoint_is_in_it(tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    contradictory = GenerationConfig(max_new_tokens=7)
    contradictory.temperature = 0.3  # without do_sample: refused by its own save_pretrained
    settings = dict(tokenizer=word_tokenizer(), generation_config=contradictory, card="# A card")
    folder = saved("llama", "narrow", tmp_path / "a" / "checkpoint", **settings)[1]
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("a b")["input_ids"] == [1, 2]
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).chat_template
    assert load(folder).generation_config.max_new_tokens == 7
    assert (folder / "README.md").read_text(encoding="utf-8") == "# A card"
    record = json.loads((folder / "architecture.json").read_text(encoding="utf-8"))
    architecture = architecture_of_cut("narrow", shape)
    assert Architecture.from_json(json.dumps(record["architecture"])) == architecture
    assert record["digest"] == architecture.digest
    assert record["parent_shape"]["ffn"] == shape.ffn
    assert not {path.suffix for path in folder.iterdir()} & {".bin", ".pt", ".pkl"}


def test_a_save_that_dies_leaves_nothing_and_one_that_works_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying:
        def save_pretrained(self, _: Path) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saved("llama", "narrow", tmp_path / "checkpoint", tokenizer=Dying())
    assert list(tmp_path.iterdir()) == []

    folder = saved("llama", "uniform", tmp_path / "checkpoint")[1]
    with pytest.raises(KeyboardInterrupt):
        saved("llama", "narrow", folder, tokenizer=Dying())
    assert not (folder / "modeling_subnet.py").exists()  # still the first one, whole
    (tmp_path / ".checkpoint.partial").mkdir()  # as a killed process leaves it
    (tmp_path / ".checkpoint.partial" / "model.safetensors").write_text("half")
    subnet = saved("llama", "narrow", folder)[0]
    assert torch.equal(load(folder)(tokens()).logits, subnet(tokens()).logits)
    assert [path.name for path in tmp_path.iterdir() if path.name != "modules"] == ["checkpoint"]

    folder.rename(tmp_path / ".checkpoint.former")  # killed in the moment between the two
    with pytest.raises(KeyboardInterrupt):
        saved("llama", "uniform", folder, tokenizer=Dying())
    assert torch.equal(load(folder)(tokens()).logits, subnet(tokens()).logits)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="no checkpoint of this project"):
        saved("llama", "narrow", tmp_path / "notes")
    with pytest.raises(InputError, match="no checkpoint of this project"):
        saved("llama", "narrow", tmp_path / "notes" / "mine.txt")
    with pytest.raises(InputError, match="cannot be written"):
        saved("llama", "narrow", tmp_path / "notes" / "mine.txt" / "checkpoint")
    assert [path.name for path in tmp_path.rglob("*")] == ["notes", "mine.txt"]


def test_a_subnet_of_another_architecture_is_refused(tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    subnet = cut(parent, shape, architecture_of_cut("narrow", shape), own=True)
    for kind in ("no mlp", "uniform"):
        with pytest.raises(InputError, match="does not have the widths"):
            save_checkpoint(subnet, parent.config, shape, architecture_of_cut(kind, shape), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_saving_changes_neither_the_subnet_nor_the_random_numbers(tmp_path: Path) -> None:
    parent, shape = permuted_parent("gemma2")
    subnet = cut(parent, shape, architecture_of_cut("narrow", shape), own=True)
    before, state = subnet.config.to_dict(), torch.get_rng_state()
    settings = parent.config.to_dict()
    save_checkpoint(
        subnet, parent.config, shape, architecture_of_cut("narrow", shape), tmp_path / "checkpoint"
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert subnet.config.to_dict() == before and parent.config.to_dict() == settings


ELSEWHERE = """
import importlib.util, json, sys
assert not any(importlib.util.find_spec(name) for name in ("nas", "predictors", "experiments"))
import torch
from transformers import AutoModelForCausalLM
ids = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    with torch.no_grad():
        torch.save(model(ids).logits, folder + ".logits")
"""


@pytest.mark.slow
def test_it_loads_where_this_project_is_not_installed(tmp_path: Path) -> None:
    expected = {}
    for name in PARENTS:
        subnet, folder = saved(name, "all at once", tmp_path / name)
        expected[folder] = subnet(tokens()).logits
    for kind in ("uniform", "all at once"):
        subnet, folder = saved("llama", kind, tmp_path / f"narrow {kind}", hidden=20)
        expected[folder] = subnet(tokens()).logits
    for folder, logits in logits_elsewhere([*expected], tmp_path).items():
        close = dict(rtol=1e-4, atol=2e-5 * float(logits.abs().max()))
        torch.testing.assert_close(logits, expected[folder], **close, msg=folder.name)


def logits_elsewhere(folders: list[Path], tmp_path: Path) -> dict[Path, Tensor]:
    """Logits of checkpoints, from a process that cannot find this project."""
    torch.save(tokens(), tmp_path / "ids")
    # -S leaves out site-packages' own start-up files, and with them an editable install of this project
    code = (
        f"import sys; sys.path.append({next(p for p in sys.path if p.endswith('site-packages'))!r})"
        + ELSEWHERE
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "ids"), *map(str, folders)],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules elsewhere")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {folder: torch.load(f"{folder}.logits") for folder in folders}


@pytest.mark.parametrize("name", ["bloom", "falcon-alibi", "gpt2", "phi3"])
def test_new_weights_of_a_plain_checkpoint_are_saved_as_one(name: str, tmp_path: Path) -> None:
    folder = saved(name, "shallow", tmp_path / "first")[1]
    assert not (folder / "modeling_subnet.py").exists()
    model = plain(load(folder))
    again = load(save_again(model, folder, tmp_path / "again"))
    torch.testing.assert_close(again(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-3)
