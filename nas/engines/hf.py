"""transformers: the checkpoint as it is, in another dtype or in files of another size; always safetensors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from data.errors import InputError
from nas.engines.checkpoint import INDEX, Checkpoint, read_json
from nas.engines.engine import Choices, Engine
from nas.space import SearchSpace
from nas.whole import whole

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]B", re.IGNORECASE)


def restrict(space: SearchSpace, config: Mapping[str, Any], added_biases: bool) -> SearchSpace:
    """Anything: subnets that transformers cannot build carry the code that does."""
    return space


def write(checkpoint: Checkpoint, out: Path, choices: Choices) -> list[str]:
    """A folder with the same files, the weights anew."""
    with whole(out) as partial:
        partial.mkdir()
        copy_others(checkpoint, partial)
        dtype = save_weights(checkpoint, partial, choices)
        write_config(read_json(checkpoint.folder / "config.json"), dtype, partial)
        if dtype is not None:
            tell(partial, f"The weights are in {dtype} here, which loads as above.")
    return [f"written for transformers, weights in {dtype or 'the dtype they had'}"]


def write_config(config: Mapping[str, Any], dtype: str | None, folder: Path) -> None:
    """`config.json`, as transformers writes it, with the name of the weights' dtype if that was chosen."""
    settings = dict(config)
    if dtype is not None:
        settings.pop("torch_dtype", None)  # its name in older files
        settings["dtype"] = dtype
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def copy_others(checkpoint: Checkpoint, folder: Path) -> None:
    """All files but the weights, of any format, and the configuration."""
    for path in checkpoint.folder.iterdir():
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
        index = path.name.endswith(".index.json")
        if path.is_file() and not (weights or index or path.name == "config.json"):
            shutil.copyfile(path, folder / path.name)


def tell(folder: Path, changed: str) -> None:
    """Add to the model card, where there is one, what an export `changed` of the checkpoint it describes."""
    card = folder / "README.md"
    if card.is_file():
        with card.open("a", encoding="utf-8") as file:
            file.write(
                f"\n## Exported\n\n{changed} Scores and costs above are those of the checkpoint that this "
                "one was exported from, and were not measured again.\n"
            )


def save_weights(checkpoint: Checkpoint, folder: Path, choices: Choices) -> str | None:
    """Write the tensors in files of at most `max_shard_size`; the name of their dtype, if it was chosen.

    Raises `InputError` for a size that cannot be read, and for numbers that the dtype cannot hold.
    """
    if not SIZE.fullmatch(choices.max_shard_size.strip()):
        raise InputError(f"--max-shard-size is {choices.max_shard_size!r}; give it like 500MB or 5GB")
    dtype = None if choices.dtype == "auto" else DTYPES[choices.dtype]

    def wanted(stored: Tensor) -> torch.dtype:
        return dtype if dtype is not None and stored.is_floating_point() else stored.dtype

    def tensor(name: str) -> Tensor:
        stored = checkpoint.tensor(name)
        written = stored.to(wanted(stored))
        if written.dtype != stored.dtype and not bool(torch.isfinite(written).all()):
            raise InputError(f"{name} holds numbers that {choices.dtype} cannot; give another --dtype")
        return written

    sized = {}
    for name in sorted(checkpoint.places):
        mapped = checkpoint.tensor(name)  # of which nothing is read for its size
        sized[name] = torch.empty(mapped.shape, dtype=wanted(mapped), device="meta")
    plan = split_torch_state_dict_into_shards(sized, max_shard_size=choices.max_shard_size.upper())
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensor(name) for name in names}, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return None if dtype is None else str(dtype).removeprefix("torch.")


ENGINE = Engine("transformers", ("auto", *DTYPES), restrict, write)
