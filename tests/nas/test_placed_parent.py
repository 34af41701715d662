"""Loading a parent whose weights stay in its checkpoint, or in memory, instead of on the device."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from nas.evaluate import evaluate
from nas.families import native_state
from nas.parent import digest_of, load_parent
from nas.placement import Placement, placement_of
from tests.nas.tiny_models import tiny_parent, tokens

FAMILIES = ("llama", "llama-biased", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "falcon-alibi", "mixtral")
CPU = torch.device("cpu")


def saved(name: str, folder: Path, dtype: torch.dtype) -> str:
    model = tiny_parent(name)
    state = {key: value.to(dtype) for key, value in native_state(model).items()}
    model.to(dtype).save_pretrained(folder, state_dict=state)
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_parent_is_the_same_wherever_its_weights_are(
    name: str, stored: torch.dtype, tmp_path: Path
) -> None:
    place = saved(name, tmp_path / "parent", stored)
    expected, _ = load_parent(place, CPU, torch.float32)
    for keep_weights in (True, False):
        placement = Placement(CPU, tmp_path / "files", keep_weights=keep_weights)
        found, _ = load_parent(place, CPU, torch.float32, placement=placement)
        assert placement_of(found) == placement
        assert {weight.dtype for weight in found.parameters()} == {torch.float32}
        assert digest_of(found) == digest_of(expected)
        assert evaluate(found, tokens(batch=3)) == evaluate(expected, tokens(batch=3))
    assert not list((tmp_path / "files").glob("*"))


def test_weights_that_are_stored_as_they_are_wanted_are_not_written_anew(tmp_path: Path) -> None:
    place = saved("llama", tmp_path / "parent", torch.float32)
    load_parent(place, CPU, torch.float32, placement=Placement(CPU, tmp_path / "files"))
    assert not (tmp_path / "files").exists()
