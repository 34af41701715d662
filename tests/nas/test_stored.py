"""What is measured is what is saved: weights have the values of the dtype that the checkpoint keeps."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from data.errors import InputError
from nas.export import save_checkpoint
from nas.finalists import round_weights
from nas.parent import check_seq_len, load_parent, place_of, stored_dtype
from nas.shape import Shape
from nas.subnet import cut
from tests.nas.tiny_models import architecture_of_cut, permuted_parent, tokens


def rounded_subnet(name: str, kind: str) -> tuple[PreTrainedModel, PreTrainedModel, Shape]:
    parent, shape = permuted_parent(name)
    subnet = cut(parent, shape, architecture_of_cut(kind, shape))
    round_weights(subnet, torch.bfloat16)
    return parent, subnet, shape


@pytest.mark.parametrize("kind", ["uniform", "all at once"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # gemma's head is tied to its embeddings
def test_a_rounded_subnet_is_the_checkpoint_that_is_half_as_wide(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path))
    parent, subnet, shape = rounded_subnet(name, kind)
    architecture = architecture_of_cut(kind, shape)
    folder = save_checkpoint(
        subnet, parent.config, shape, architecture, tmp_path / "checkpoint", dtype=torch.bfloat16
    )
    assert subnet.dtype == torch.float32
    as_saved, widened = (
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
        for dtype in ("auto", torch.float32)
    )
    assert as_saved.dtype == torch.bfloat16
    stored = load_file(folder / "model.safetensors").values()
    assert sum(weight.numel() for weight in stored) == subnet.num_parameters()
    with torch.no_grad():
        assert torch.equal(widened(tokens()).logits, subnet(tokens()).logits)


def test_rounding_leaves_the_parent_that_shares_its_weights() -> None:
    parent, _ = permuted_parent("llama")
    before = {name: weight.clone() for name, weight in parent.state_dict().items()}
    rounded_subnet("llama", "uniform")
    assert all(torch.equal(weight, before[name]) for name, weight in parent.state_dict().items())


def test_no_checkpoint_is_wider_than_its_parent_or_than_what_it_was_computed_in(tmp_path: Path) -> None:
    config = copy.deepcopy(permuted_parent("llama")[0].config)
    for own, computed, stored in (
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
    ):
        config.dtype = own
        config.save_pretrained(tmp_path / str(own))
        assert stored_dtype(str(tmp_path / str(own)), computed) == stored


def test_windows_longer_than_the_parent_reads_are_refused() -> None:
    parent, _ = permuted_parent("llama")
    longest = parent.config.max_position_embeddings
    check_seq_len(parent, longest)
    with pytest.raises(
        InputError, match=f"--seq-len is {longest + 1}, and the parent .* {longest} positions"
    ):
        check_seq_len(parent, longest + 1)


def test_the_folder_of_a_run_is_not_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="did you mean .*checkpoint"):
        place_of(str(tmp_path))
    assert place_of("gpt2") == "gpt2"  # some Hub ids have no organisation
    for name in ("", str(tmp_path / "gone"), "a/b/c"):
        with pytest.raises(InputError, match="there is no model folder"):
            load_parent(name, torch.device("cpu"), torch.float32)
