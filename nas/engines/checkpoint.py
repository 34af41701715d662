"""A saved checkpoint as engines see it: its configuration, the widths of its blocks, its tensors by name.

Read from the folder alone, so that whatever transformers can load may be exported: subnets of this project,
plain or with code of their own, and parents. The tensors say how wide a block is, not the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig

from data.errors import InputError, first_line
from data.json_text import from_json
from nas.families.table import PREFIX, family_name

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Widths:
    """What a block has: query heads, KV heads (both 0: no attention) and FFN channels (0: no MLP)."""

    heads: int
    kv_heads: int
    ffn: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder, what its `config.json` says, and which file holds each of its tensors."""

    folder: Path
    config: Mapping[str, Any]
    places: Mapping[str, Path]

    @property
    def family(self) -> str:
        """The model type, of a subnet its family's."""
        return family_name(str(self.config.get("model_type", "")))

    @property
    def has_own_type(self) -> bool:
        """Whether it is a subnet that carries its code (see `nas.export`)."""
        return str(self.config.get("model_type", "")).startswith(PREFIX)

    @property
    def head_dim(self) -> int:
        """Channels of a whole head."""
        return head_dim_of(self.config)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.config.get("tie_word_embeddings", not self.has("lm_head.weight")))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, without reading one."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(set(self.places.values())):
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                shapes |= {
                    name: tuple(file.get_slice(name).get_shape())
                    for name, place in self.places.items()
                    if place == path and name in names
                }
        lost = sorted(set(self.places) - set(shapes))
        if lost:
            raise InputError(f"{self.folder} names the tensor {lost[0]} and does not hold it; save it again")
        return shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; `InputError` where there is none of the name."""
        if name not in self.shapes:
            raise InputError(f"{self.folder} has no tensor {name}; fetch it again")
        return self.shapes[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the dtype it is stored in; `InputError` where there is none of the name."""
        self.shape(name)
        with safe_open(self.places[name], framework="pt") as file:
            return file.get_tensor(name)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.places

    @cached_property
    def blocks(self) -> tuple[Widths, ...]:
        """The widths of every block of a model that names its projections as LLaMA does.

        Raises `InputError` for other names, and for heads that are kept in part.
        """
        shapes, dim = self.shapes, self.head_dim
        rows = []
        for index in range(number_of(self.config, "num_hidden_layers")):
            part = f"model.layers.{index}."
            if f"{part}self_attn.rotary" in shapes:
                raise InputError(
                    f"block {index} of {self.folder} keeps parts of its heads, which no engine but "
                    "transformers can run; export to hf, or cut whole heads"
                )
            query, key, down = (
                shapes.get(f"{part}{name}.weight")
                for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
            )
            if (query is None and down is None) or (query is None) != (key is None):
                raise InputError(
                    f"block {index} of {self.folder} has no projections named as LLaMA's; its family "
                    f"{self.family!r} can be exported to hf only"
                )
            heads, kv_heads = (0, 0) if query is None or key is None else (query[0] // dim, key[0] // dim)
            rows.append(Widths(heads, kv_heads, 0 if down is None else down[1]))
        return tuple(rows)

    @property
    def is_uniform(self) -> bool:
        """Whether all blocks are alike and have both parts."""
        return len(set(self.blocks)) == 1 and bool(self.blocks[0].heads and self.blocks[0].ffn)


def head_dim_of(config: Mapping[str, Any]) -> int:
    """Channels of a whole head, by a configuration."""
    if config.get("head_dim"):
        return number_of(config, "head_dim")
    return number_of(config, "hidden_size") // number_of(config, "num_attention_heads") or 1


def number_of(config: Mapping[str, Any], name: str) -> int:
    """A setting that counts something; `InputError` where it is no number of 1 or more."""
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise InputError(f"the checkpoint's config.json says {name} is {value!r}; fetch it again")
    return value


def factor_of(config: Mapping[str, Any], name: str) -> float:
    """A setting that scales something; `InputError` where it is no number above 0."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"the checkpoint's config.json says {name} is {value!r}; fetch it again")
    return float(value)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; `InputError` if there is none, or only in another format."""
    inner = folder / "checkpoint"
    if not (folder / "config.json").is_file() and (inner / "config.json").is_file():
        raise InputError(f"{folder} holds a run and no model itself; did you mean {inner}?")
    config = read_json(folder / "config.json")
    if (folder / INDEX).is_file():
        stored = read_json(folder / INDEX).get("weight_map", {})
        places = {str(name): folder / str(file) for name, file in stored.items()}
    elif (folder / SINGLE).is_file():
        try:
            with safe_open(folder / SINGLE, framework="pt") as file:
                places = dict.fromkeys(file.keys(), folder / SINGLE)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / SINGLE} cannot be read ({error}); save the model again") from error
    else:
        raise InputError(f"{folder} has no {SINGLE}; save the model as safetensors")
    missing = sorted({str(place) for place in places.values() if not place.is_file()})
    if missing:
        raise InputError(f"{folder} names the file {missing[0]}, which is not there; fetch it again")
    return Checkpoint(folder, _complete(folder, config), places)


def _complete(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with what its family takes where a file says nothing; a subnet's is complete."""
    kind = str(config.get("model_type", ""))
    if kind.startswith(PREFIX):
        return config
    try:
        written: dict[str, Any] = AutoConfig.for_model(**config).to_dict()
    except Exception as error:  # whatever the library makes of an unknown type or a wrong value
        raise InputError(
            f"{folder / 'config.json'} names no model of transformers ({first_line(error)}); check it"
        ) from error
    return {**written, **{name: value for name, value in config.items() if name not in written}}


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a checkpoint holds by name; `InputError` for one that is not there or cut off."""
    try:
        content = from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give the folder of a checkpoint"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON; fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings; fetch the checkpoint again")
    return content
