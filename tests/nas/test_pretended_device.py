"""Where tensors are while a parent is on its device block by block, on a machine that has no other device.

The device is `meta`, whose tensors have shapes and no values; whatever is asked of one comes back as ones.
That is enough to see that nothing on it meets a tensor at home, and that all is at home again in the end.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from nas.blockwise import fetching, logits
from nas.calibration import calibrate
from nas.families import shape_of
from nas.placement import Placement, place, sharing
from nas.prepare import prepare
from nas.repair import REPAIRS
from nas.repair.stream import Stream
from nas.space import default_space
from nas.subnet import cut
from tests.nas.test_repair import whole_bank
from tests.nas.tiny_models import architecture_of_cut, permuted_parent, tokens

META = torch.device("meta")
FAMILIES = ("llama-biased", "olmo3", "phi3", "falcon-alibi", "phi")


class Pretended(TorchDispatchMode):
    """Values for what is asked of tensors that have none."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is torch.ops.aten._local_scalar_dense.default:
                return {torch.bool: True, torch.int32: 0}.get(
                    args[0].dtype, 1
                )  # int32: a solver's complaints
            if func is torch.ops.aten._to_copy.default and given.get("device") == torch.device("cpu"):
                return torch.ones(args[0].shape, dtype=given.get("dtype") or args[0].dtype)
        return func(*args, **given)


@pytest.fixture(params=FAMILIES)
def parent(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    return place(sharing(permuted_parent(request.param)[0]), Placement(META, tmp_path))


def devices(model: PreTrainedModel) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


def test_windows_go_through_on_the_device(parent: PreTrainedModel) -> None:
    shape = shape_of(parent)
    with Pretended(), torch.no_grad():
        for model in (parent, cut(parent, shape, architecture_of_cut("narrow", shape))):
            found = list(logits(model, tokens(batch=3), 2))
            assert [each.shape[0] for each in found] == [2, 1]
            assert all(each.is_meta for each in found)
            with fetching(model) as device:
                assert model(tokens().to(device)).logits.is_meta
        assert devices(parent) == {"cpu"}


def test_a_parent_is_prepared_on_the_device(parent: PreTrainedModel, tmp_path: Path) -> None:
    shape = shape_of(parent)
    with Pretended():
        for ranking in ("output_energy", "second_moment", "fluctuation", "random"):
            found = prepare(
                parent, shape, default_space(shape), tokens(batch=3), ranking, tmp_path, {},
                batch_size=2, quiet=True,
            )  # fmt: skip
            assert devices(found.parent) == devices(parent) == {"cpu"}
            assert all(matrix.device.type == "cpu" for matrix in found.bank.matrices.values())


@pytest.mark.parametrize("repair", ["front_to_back", "two_step", "admm", "mean_bias", "least_squares"])
def test_subnets_are_repaired_on_the_device_and_then_at_home(repair: str, parent: PreTrainedModel) -> None:
    shape = shape_of(parent)
    whole, _ = permuted_parent("llama")
    bank = whole_bank(parent, shape, calibrate(parent, tokens(batch=4)))
    for kind in ("narrow", "no middle attention"):
        with Pretended():
            dense = Stream(parent, tokens(batch=3), 2)
            assert all(state.is_meta for state in dense.before(2))
            found = REPAIRS[repair].make(parent, shape, architecture_of_cut(kind, shape), bank, dense)
        assert devices(found) == devices(parent) == {"cpu"}
