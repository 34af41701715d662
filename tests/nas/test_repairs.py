"""Every repair that can be named makes the subnet that was asked for, and none is not a repair."""

import pytest
import torch
from torch import Tensor

from nas.repair import REPAIRS
from nas.repair.stream import Stream
from nas.subnet import cut
from tests.nas.test_repair import shared_bank
from tests.nas.tiny_models import CUTS, architecture_of_cut, tokens

WINDOWS = tokens(length=12, batch=10)


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("repair", REPAIRS)
def test_a_repair_makes_a_subnet_of_its_own_and_leaves_the_parent(repair: str, name: str, kind: str) -> None:
    parent, shape, bank = shared_bank(name)
    architecture = architecture_of_cut(kind, shape)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    made = REPAIRS[repair].make(parent, shape, architecture, bank, Stream(parent, WINDOWS))
    assert all(torch.equal(value, before[key]) for key, value in parent.state_dict().items())
    plain = cut(parent, shape, architecture)
    shapes = {key: value.shape for key, value in made.state_dict().items() if not key.endswith("proj.bias")}
    assert shapes == {
        key: value.shape for key, value in plain.state_dict().items() if not key.endswith("proj.bias")
    }
    with torch.no_grad():
        logits = made(tokens()).logits
        assert logits.isfinite().all()
        if repair == "none":
            assert torch.equal(logits, plain(tokens()).logits)
    kept = {value.data_ptr() for value in parent.model.layers.state_dict().values()}
    assert not kept & {value.data_ptr() for value in made.model.layers.state_dict().values()}


def missing(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).square().mean())


@pytest.mark.parametrize("repair", [name for name in REPAIRS if name != "none"])
def test_a_repair_ends_nearer_to_the_parent(repair: str) -> None:
    parent, shape, bank = shared_bank("llama")
    architecture = architecture_of_cut("narrow", shape)
    dense = Stream(parent, WINDOWS)
    with torch.no_grad():
        wanted = parent.model(WINDOWS).last_hidden_state
        ends = {
            name: missing(
                REPAIRS[name].make(parent, shape, architecture, bank, dense).model(WINDOWS).last_hidden_state,
                wanted,
            )
            for name in ("none", repair)
        }
    assert ends[repair] < ends["none"]
