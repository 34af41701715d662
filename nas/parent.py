"""Load a parent: from the Hub or a local folder, on the device that is there."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from data.errors import InputError, first_line
from nas import baichuan
from nas.blockwise import ends_of
from nas.families import check_supported, layers_of, plain, plain_block
from nas.placement import Placement, place, send_home

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
"""The embedded parent, called `demo` on the command line."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Names of what is computed in."""
HUB_MODEL = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; anything else is taken as it is. Of several GPUs a
    process that torchrun or Slurm started as one of some on its machine takes its own."""
    try:
        device = torch.device(_found() if name == "auto" else name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known; give auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available here; give --device cpu")
    return device


def _found() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or ""
    return f"cuda:{int(rank) % torch.cuda.device_count()}" if rank.isdigit() else "cuda"


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known; give {', '.join(DTYPES)}")
    return getattr(torch, name)


def place_of(name: str) -> str:
    """Where transformers finds the model that a person calls `name`: a Hub id, a local folder or `demo`.

    Raises `InputError` where that is neither a folder nor the form of a Hub id, or the folder of a run.
    """
    if name == "demo":
        return str(DEMO)
    folder = Path(name)
    if name and folder.is_dir():
        inner = folder / "checkpoint"
        if not (folder / "config.json").exists() and (inner / "config.json").exists():
            raise InputError(f"{name} holds a run and no model itself; did you mean {inner}?")
        return name
    if not HUB_MODEL.fullmatch(name):
        raise InputError(
            f"there is no model folder {name or 'of an empty name'}; give a local folder, a Hub id "
            "ORGANISATION/NAME or demo"
        )
    return name


def read_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a Hub id, a local folder or `demo`; `InputError` where there is none."""
    location = place_of(name)
    with saying_what_failed(f"the parent {name}"):
        settings, _ = PreTrainedConfig.get_config_dict(location, revision=revision)
        if settings.get("model_type") == baichuan.KIND:
            return baichuan.read_config(settings)
        return AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)


@contextmanager
def saying_what_failed(what: str) -> Iterator[None]:
    """Make an `InputError` of whatever a broken folder or a missing network makes the library raise, and of
    the panics of libraries in Rust, which are no `Exception`."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(
            f"{what} cannot be loaded ({first_line(error)}); check the id or the folder, or fetch it again"
        ) from error


def load_parent(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    *,
    placement: Placement | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (in evaluation mode, without gradients) and tokenizer of a Hub id, a local folder or `demo`.

    With a `placement` the model is computed on its device block by block. Its weights stay in the files of
    the checkpoint, memory-mapped, and those that are stored in another dtype, or fused, go block by block
    into a file of the placement; or they are in memory, where the placement keeps none in files.

    Raises `InputError` for an unknown parent, a broken checkpoint or an unsupported family; code that comes
    with a parent is never run.
    """
    logging.disable_progress_bar()
    location = place_of(name)
    config = read_config(name, revision)
    check_supported(config)
    wanted: torch.dtype | str = dtype if placement is None else "auto"
    with saying_what_failed(f"the parent {name}"):
        if isinstance(config, baichuan.PackedConfig):
            model, loading = baichuan.load_model(location, config, wanted, revision)
            tokenizer = baichuan.load_tokenizer(location, revision)
        else:
            model, loading = AutoModelForCausalLM.from_pretrained(
                location, revision=revision, dtype=wanted, output_loading_info=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
    check_complete(name, loading["missing_keys"])
    model = model.eval().requires_grad_(False)
    model = plain(model) if placement is None else _at_home(model, dtype, placement)
    broken = [key for key, weight in model.named_parameters() if not _finite(weight)]
    if broken:
        raise InputError(f"{len(broken)} weights of {name} hold NaN or infinity, {broken[0]} among them")
    return model.to(device) if placement is None else model, tokenizer


def _at_home(model: PreTrainedModel, dtype: torch.dtype, placement: Placement) -> PreTrainedModel:
    """A model as it was mapped from its checkpoint, changed in place: plain, in this dtype, and placed."""
    heads = model.config.num_attention_heads
    if next(model.parameters()).dtype != dtype:
        for name, buffer in _buffers_in(model.config, dtype).items():
            *path, last = name.split(".")
            model.get_submodule(".".join(path))._buffers[last] = buffer
    for layer in layers_of(model):
        mapped = set() if layer.layout.experts else {w.data_ptr() for w in layer.module.parameters()}
        plain_block(layer, heads)
        _settle(list(layer.module.modules()), mapped, dtype, placement)
    ends = ends_of(model)
    _settle(ends, {w.data_ptr() for w in _weights(ends)}, dtype, placement)
    model.config.dtype = dtype
    return place(model, placement)


def _buffers_in(config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The buffers that a model has which is made in this dtype, some of which are rounded to it (gemma's
    scale of the embeddings); without its weights."""

    def weightless(_: nn.Module, __: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        return None if weight is None else nn.Parameter(torch.empty_like(weight, device="meta"), False)

    hook = register_module_parameter_registration_hook(weightless)
    try:
        return dict(AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).named_buffers())
    finally:
        hook.remove()


def _settle(modules: Sequence[nn.Module], mapped: set[int], dtype: torch.dtype, placement: Placement) -> None:
    """Give what modules hold its dtype and its home; weights at the addresses `mapped` may be there."""
    weights = _weights(modules)
    for weight in weights:
        # In memory where the placement says so: what was mapped is read now, and not again for every pass.
        weight.data = weight.data.to(dtype, copy=not placement.keep_weights)
    if placement.keep_weights and any(weight.data_ptr() not in mapped for weight in weights):
        send_home(modules, placement)


def _weights(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [weight for module in modules for weight in module.parameters(recurse=False)]


def _finite(weight: Tensor) -> bool:
    """Whether all of a weight is; looked at in pieces, for it may be the largest matrix of all."""
    return all(bool(torch.isfinite(part).all()) for part in weight.split(1024))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model alone. Raises `InputError` where there is none."""
    with saying_what_failed(f"the tokenizer of {name}"):
        return AutoTokenizer.from_pretrained(place_of(name), trust_remote_code=False)


def load_checkpoint(name: str | Path, *, trust: bool = False, **given: Any) -> PreTrainedModel:
    """A model to be measured, in evaluation mode, of whatever family, loaded with what is `given` (a dtype, a
    device map); with the code that its checkpoint carries only where that is to be trusted. `InputError` if
    it lacks weights."""
    model, loading = AutoModelForCausalLM.from_pretrained(
        name, trust_remote_code=trust, output_loading_info=True, **given
    )
    check_complete(str(name), loading["missing_keys"])
    return model.eval()


def check_complete(name: str, missing: Collection[str]) -> None:
    """Raise `InputError` for weights that a checkpoint lacks, which transformers fills in at random."""
    if missing:
        raise InputError(f"the checkpoint {name} lacks {len(missing)} weights, {min(missing)} among them")


def check_seq_len(parent: PreTrainedModel, seq_len: int) -> None:
    """Raise `InputError` for windows longer than the positions that the parent was made for."""
    longest = getattr(parent.config, "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        raise InputError(
            f"--seq-len is {seq_len}, and the parent was made for {longest} positions; give less"
        )


def stored_dtype(name: str, computed: torch.dtype) -> torch.dtype:
    """The dtype that subnets of the parent `name` are saved in: the parent's own where that is narrower than
    the one `computed` in, so that no checkpoint is wider than its parent's."""
    own = read_config(name).dtype
    return own if isinstance(own, torch.dtype) and own.itemsize < computed.itemsize else computed


def digest_of(model: PreTrainedModel) -> str:
    """Sixteen hexadecimal digits over configuration and weights."""
    seen = hashlib.blake2b(digest_size=8)
    seen.update(str(sorted(model.config.to_diff_dict().items(), key=lambda item: item[0])).encode())
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return seen.hexdigest()
