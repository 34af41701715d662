"""Load a parent: from the Hub or a local folder, on the device that is there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from data.errors import InputError
from nas.families import family_of

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
"""The embedded parent, called `demo` on the command line."""


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; anything else is taken as it is."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known; give auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available here; give --device cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on the CPU."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in known:
        raise InputError(f"dtype {name!r} is not known; give auto, {', '.join(known)}")
    return known[name]


def load_parent(
    name: str, device: torch.device, dtype: torch.dtype, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (in evaluation mode, without gradients) and tokenizer of a Hub id, a local folder or `demo`.

    Raises `InputError` for an unknown parent, a broken checkpoint or an unsupported family; code that comes
    with a parent is never run.
    """
    logging.disable_progress_bar()
    location = str(DEMO) if name == "demo" else name
    if ("/" not in name or Path(name).is_absolute() or name.startswith(".")) and not Path(location).is_dir():
        raise InputError(
            f"there is no model folder {name}; give a local folder, a Hub id ORGANISATION/NAME or demo"
        )
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
        family_of(config)
        model, loading = AutoModelForCausalLM.from_pretrained(
            location, revision=revision, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # whatever a broken folder or a missing network makes the library raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"the parent {name} cannot be loaded ({reason}); check the id, or give the folder of a checkpoint"
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InputError(f"the checkpoint {name} lacks {len(missing)} weights, {missing[0]} among them")
    broken = [key for key, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise InputError(f"{len(broken)} weights of {name} hold NaN or infinity, {broken[0]} among them")
    return model.to(device).eval().requires_grad_(False), tokenizer


def digest_of(model: PreTrainedModel) -> str:
    """Sixteen hexadecimal digits over configuration and weights."""
    seen = hashlib.blake2b(digest_size=8)
    seen.update(str(sorted(model.config.to_diff_dict().items(), key=lambda item: item[0])).encode())
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return seen.hexdigest()
