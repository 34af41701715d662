"""Parents that are on their device block by block: the same numbers as whole ones, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas import block_files
from nas.blockwise import fetching
from nas.calibration import calibrate
from nas.evaluate import evaluate, evaluate_all
from nas.evidence import Evidence
from nas.families import blocks_of, layers_of, shape_of
from nas.finalists import round_weights
from nas.importance import CRITERIA
from nas.latency import measure_latency
from nas.placement import Filed, Placement, keeper, place, placement_of, resident, sharing
from nas.prepare import Prepared, choices_of_block, prepare
from nas.ranking import permute, permute_statistics, rank
from nas.recovery.training import recover
from nas.repair import REPAIRS
from nas.repair.bank import repair_block
from nas.repair.stream import Stream
from nas.space import default_space
from nas.subnet import cut
from nas.tensor_files import in_file
from tests.nas.tiny_models import DENSE, PARENTS, architecture_of_cut, tiny_parent, tokens

every_parent = pytest.mark.parametrize("name", PARENTS)
CALIBRATION = tokens(batch=6)
RANKING = "output_energy"


SOME = ("llama", "llama-biased", "gemma2", "olmo3", "phi3", "gpt2", "falcon-alibi", "bloom", "phi", "mixtral")
"""Parents with all that differs in how their blocks are called and kept."""


def placed(parent: PreTrainedModel, folder: Path, **more: object) -> PreTrainedModel:
    """The same weights, at home in a file of their own."""
    new = sharing(parent)
    for block in blocks_of(new):
        for name, weight in in_file(dict(block.named_parameters()), folder).items():
            block.get_parameter(name).data = weight
    return place(new, Placement(torch.device("cpu"), folder, **more))  # type: ignore[arg-type]


def prepared(parent: PreTrainedModel, cache: Path, ranking: str = RANKING, **more: object) -> Prepared:
    shape = shape_of(parent)
    given = {"batch_size": 2, "quiet": True, **more}
    return prepare(parent, shape, default_space(shape), CALIBRATION, ranking, cache, {}, **given)  # type: ignore[arg-type]


@functools.cache
def whole(name: str) -> PreTrainedModel:
    return tiny_parent(name)


class OfWhole(dict[str, Prepared]):
    """Whole parents, prepared when they are asked for."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def __missing__(self, name: str) -> Prepared:
        self[name] = prepared(whole(name), self.cache / name)
        return self[name]


@pytest.fixture(scope="module")
def of_whole(tmp_path_factory: pytest.TempPathFactory) -> OfWhole:
    return OfWhole(tmp_path_factory.mktemp("whole"))


def same(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())


@every_parent
def test_a_placed_parent_is_ranked_permuted_and_repaired_like_a_whole_one(
    name: str, of_whole: OfWhole, tmp_path: Path
) -> None:
    expected, found = of_whole[name], prepared(placed(whole(name), tmp_path), tmp_path)
    assert same(found.parent, expected.parent)
    assert found.bank.errors == expected.bank.errors
    assert found.bank.matrices.keys() == expected.bank.matrices.keys()
    assert all(torch.equal(m, expected.bank.matrices[k]) for k, m in found.bank.matrices.items())
    assert np.array_equal(found.influence, expected.influence)
    assert placement_of(found.parent) is not None


@every_parent
def test_block_by_block_gives_what_one_pass_over_the_whole_gives(name: str, of_whole: OfWhole) -> None:
    parent, found = whole(name), of_whole[name]
    shape = shape_of(parent)
    evidence = Evidence(parent, shape, CALIBRATION, batch_size=2)
    orders = rank(evidence, CRITERIA[RANKING])
    permuted = permute(parent, shape, orders)
    statistics = permute_statistics(shape, evidence.statistics, orders)
    assert same(found.parent, permuted)
    assert found.influence.tolist() == list(statistics.influence)
    for block in range(shape.blocks):
        bank = repair_block(
            permuted, shape, statistics, block, *choices_of_block(default_space(shape), block)
        )
        assert all(found.bank.errors[key] == np.float32(error) for key, error in bank.errors.items())
        assert all(torch.equal(found.bank.matrices[key], m) for key, m in bank.matrices.items())


@pytest.mark.parametrize("ranking", [n for n, criterion in CRITERIA.items() if not criterion.gradients])
def test_every_ranking_without_gradients_is_the_same(ranking: str, tmp_path: Path) -> None:
    parent = whole("llama")
    found = prepared(placed(parent, tmp_path), tmp_path / "placed", ranking)
    assert same(found.parent, prepared(parent, tmp_path / "whole", ranking).parent)
    orders = rank(Evidence(parent, shape_of(parent), CALIBRATION, batch_size=2), CRITERIA[ranking])
    assert same(found.parent, permute(parent, shape_of(parent), orders))


@pytest.mark.parametrize("ranking", [n for n, criterion in CRITERIA.items() if criterion.gradients])
def test_a_ranking_by_gradients_needs_the_whole_parent(ranking: str, tmp_path: Path) -> None:
    parent = whole("llama")
    with pytest.raises(InputError, match="--parent-on device"):
        prepared(placed(parent, tmp_path), tmp_path, ranking)
    orders = rank(Evidence(parent, shape_of(parent), CALIBRATION, batch_size=2), CRITERIA[ranking])
    assert same(prepared(parent, tmp_path, ranking).parent, permute(parent, shape_of(parent), orders))


@every_parent
def test_scores_are_the_same(name: str, of_whole: OfWhole, tmp_path: Path) -> None:
    expected, room = of_whole[name].parent, 0 if name in SOME else 2**31
    parent = placed(expected, tmp_path, room=room)
    shape, windows = shape_of(whole(name)), tokens(batch=5)
    subnets = [
        [cut(each, shape, architecture_of_cut(kind, shape)) for kind in ("narrow", "all at once")]
        for each in (expected, parent)
    ]
    wanted = evaluate_all([expected, *subnets[0]], windows, batch_size=2, parent=expected)
    seen: list[int] = []
    found = evaluate_all([parent, *subnets[1]], windows, batch_size=2, parent=parent, progress=seen.append)
    assert found == wanted
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("name", [name for name in DENSE if name in SOME])
def test_repairs_are_the_same(name: str, keep_weights: bool, of_whole: OfWhole, tmp_path: Path) -> None:
    ready, shape = of_whole[name], shape_of(whole(name))
    parent = placed(ready.parent, tmp_path, keep_weights=keep_weights, room=0 if keep_weights else 2**31)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    architecture = architecture_of_cut("no middle attention", shape)
    dense, other = Stream(ready.parent, CALIBRATION, 2), Stream(parent, CALIBRATION, 2)
    for repair in ("none", "least_squares", "front_to_back", "two_step"):
        make = REPAIRS[repair].make
        found = make(parent, shape, architecture, ready.bank, other)
        assert same(found, make(ready.parent, shape, architecture, ready.bank, dense)), repair
        round_weights(found, torch.bfloat16)
        assert all(torch.equal(v, v.to(torch.bfloat16).to(v.dtype)) for v in found.parameters())
    assert all(torch.equal(value, before[key]) for key, value in parent.state_dict().items())


def test_a_mixture_is_repaired_front_to_back_as_well(of_whole: OfWhole, tmp_path: Path) -> None:
    ready = of_whole["mixtral"]
    parent, shape = placed(ready.parent, tmp_path), shape_of(whole("mixtral"))
    make, architecture = REPAIRS["front_to_back"].make, architecture_of_cut("narrow", shape)
    streams = [Stream(each, CALIBRATION, 2) for each in (parent, ready.parent)]
    found = make(parent, shape, architecture, ready.bank, streams[0])
    assert same(found, make(ready.parent, shape, architecture, ready.bank, streams[1]))


@pytest.mark.parametrize("name", SOME)
def test_a_model_whose_blocks_are_fetched_is_called_as_it_is(name: str, tmp_path: Path) -> None:
    parent, expected = placed(whole(name), tmp_path), whole(name)
    with torch.no_grad(), fetching(parent) as device:
        assert torch.equal(parent(tokens().to(device)).logits, expected(tokens()).logits)
    assert not any("forward" in block.__dict__ for block in blocks_of(parent))
    assert len(measure_latency([parent], context=8, tokens=2, repeats=1)) == 1


def test_blocks_that_are_finished_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = placed(whole("llama"), tmp_path)
    repair, seen = block_files.repair_layer, []

    def counted(*given: object) -> object:
        seen.append(given[4])
        if seen == [0, 1]:
            raise KeyboardInterrupt
        return repair(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(block_files, "repair_layer", counted)
    with pytest.raises(KeyboardInterrupt):
        prepared(parent, tmp_path)
    found = prepared(parent, tmp_path)
    assert seen == [0, 1, 1, 2]
    assert same(found.parent, prepared(whole("llama"), tmp_path / "whole").parent)
    assert seen == [0, 1, 1, 2, 0, 1, 2]
    prepared(parent, tmp_path)
    prepared(whole("llama"), tmp_path)  # of a whole parent the same files serve
    assert len(seen) == 7


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    parent = placed(whole("llama"), tmp_path)
    expected = prepared(parent, tmp_path / "cache")
    for broken in ("*/1.safetensors", "*/2.weights.safetensors"):
        (path,) = (tmp_path / "cache").glob(broken)
        path.unlink()
        path.write_bytes(b"half")
    assert same(prepared(parent, tmp_path / "cache").parent, expected.parent)


def test_a_module_is_on_the_device_for_a_while() -> None:
    block = layers_of(whole("llama"))[0].module
    before = dict(block.named_parameters())
    with resident(block, torch.device("meta")):
        assert {weight.device.type for weight in block.parameters()} == {"meta"}
        with resident(block, torch.device("meta")):
            pass
        assert {weight.device.type for weight in block.parameters()} == {"meta"}
    assert all(weight is before[name] for name, weight in block.named_parameters())
    with pytest.raises(ZeroDivisionError), resident(block, torch.device("meta")):
        raise ZeroDivisionError
    assert all(weight is before[name] for name, weight in block.named_parameters())


def test_tied_weights_stay_tied_and_names_of_files_do_not_stay(tmp_path: Path) -> None:
    parent = whole("llama-biased")
    assert parent.lm_head.weight is parent.model.embed_tokens.weight
    new = sharing(parent)
    assert new.lm_head.weight is new.model.embed_tokens.weight is not parent.lm_head.weight
    assert new.lm_head.weight.data_ptr() == parent.lm_head.weight.data_ptr()
    ends: list[nn.Module] = [new.lm_head, new.model.embed_tokens]
    with resident(ends, torch.device("meta")):
        assert new.lm_head.weight is new.model.embed_tokens.weight
    kept = in_file({"a": torch.arange(5)}, tmp_path / "new" / "folder")
    assert kept["a"].tolist() == [0, 1, 2, 3, 4]
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_stream_beyond_its_room_lies_in_files(tmp_path: Path) -> None:
    batches = [torch.full((2, 3), float(i)) for i in range(4)]
    assert keeper(whole("llama"))(batches) == batches

    def kept(room: int) -> Sequence[Tensor]:
        return keeper(place(nn.Identity(), Placement(torch.device("cpu"), tmp_path, room=room)))(
            iter(batches)
        )

    assert not isinstance(kept(96), Filed)
    found = kept(95)
    assert isinstance(found, Filed)
    assert torch.equal(torch.stack(list(found)), torch.stack(batches))
    assert [float(each[0, 0]) for each in found[1:3]] == [1.0, 2.0]


def test_what_needs_the_whole_model_says_so(tmp_path: Path) -> None:
    parent = placed(whole("llama"), tmp_path)
    with pytest.raises(InputError, match="training needs the whole model on its device"):
        recover(parent, tokens(), steps=1)
    with pytest.raises(InputError, match="a backward pass needs the whole model"):
        _ = Evidence(parent, shape_of(parent), tokens()).gradients


def test_statistics_of_a_placed_parent_can_be_asked_for_as_ever(tmp_path: Path) -> None:
    parent = placed(whole("llama"), tmp_path)
    expected = calibrate(whole("llama"), tokens())
    assert all(
        torch.equal(a, b)
        for a, b in zip(calibrate(parent, tokens()).ffn_gram, expected.ffn_gram, strict=True)
    )
    assert evaluate(parent, tokens()) == evaluate(whole("llama"), tokens())
