"""Save a subnet as a checkpoint that `AutoModelForCausalLM` loads where this project is not installed.

A subnet that transformers can build from one width for all blocks becomes a plain checkpoint of its family.
Which can is found by building it on the meta device and comparing every shape, not by rules. Some families
refuse head counts that do not divide the hidden width; a LLaMA without biases is then written as Mistral
without a window, which is the same computation. Every other subnet keeps its widths in `per_layer_config`
and carries `nas/modeling_subnet.py`, filled in for its family, as `modeling_subnet.py`; so does one that
keeps parts of heads, for no configuration says which of the frequencies those turn by.

Such a checkpoint has a model type of its own (`secateur_llama`). Under the family's type, transformers
without `trust_remote_code` would take its own class and, where nothing but skips differ, load it with new
random weights and a mere warning; under a type of its own it says that it needs the code. The price:
engines that switch on the type do not know it, but those would build it wrong. The family's classes fail
too when they are called by name: a skipped module's widths are 0 in `per_layer_config`, so some width
always varies by block, and they refuse to read such a width from a configuration that does not allow it
(`SubnetConfig` does).
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from data.errors import InputError
from nas import modeling_subnet
from nas.architecture import Architecture
from nas.families import ATTENTION, MLP, blocks_of, family_of, layers_of, native_state, write_native
from nas.ranking import reorder_heads
from nas.shape import Shape, check_fits
from nas.subnet import depth_settings, width_settings
from nas.whole import whole

CODE = "modeling_subnet.py"
RECORD = "architecture.json"
_OF_THE_PARENT_ALONE = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "_name_or_path",
    "dtype",
    "quantization_config",
)


def save_checkpoint(
    subnet: PreTrainedModel,
    parent_config: PreTrainedConfig,
    shape: Shape,
    architecture: Architecture,
    folder: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation_config: GenerationConfig | None = None,
    card: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the subnet, its configuration, `architecture.json` and the card (README.md) into `folder`.

    The folder appears whole or not at all; an earlier checkpoint of this project there is replaced, anything
    else raises `InputError`. `generation_config` is by default the one that the subnet carries,
    `dtype` that of its weights.
    """
    check_fits(architecture, shape)
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    with _quiet(), whole(folder, replace=True) as partial:
        model, code = _as_saved(subnet, parent_config, shape, architecture)
        if dtype is not None:
            model.tie_weights()  # or what is shared would be converted, and saved, twice
            model.to(dtype)
        model.save_pretrained(partial)
        if code is not None:
            (partial / CODE).write_text(code, encoding="utf-8")
        generation = generation_config or subnet.generation_config
        if generation is not None:
            # Not by its save_pretrained: it raises for contradictions that some parents are published with.
            generation.to_json_file(partial / "generation_config.json")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        (partial / RECORD).write_text(_record(parent_config, shape, architecture), encoding="utf-8")
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
    return folder


def save_again(subnet: PreTrainedModel, like: Path, folder: Path) -> Path:
    """Write a model that was loaded from `like`, a checkpoint of this project, and has other weights now,
    into `folder`: in the dtype that `like` has them in, which the model has from then on too, and with all
    else but the card as it is there.

    The folder appears whole or not at all; what else is there is treated as by `save_checkpoint`.
    """
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    stored = getattr(torch, json.loads((like / "config.json").read_text(encoding="utf-8"))["dtype"])
    with _quiet(), whole(folder, replace=True) as partial:
        write_native(subnet.to(stored), partial)
        for path in like.iterdir():
            is_weights = path.name.endswith((".safetensors", ".index.json"))
            if path.is_file() and not is_weights and path.suffix != ".md":
                shutil.copy(path, partial)
    return folder


def needs_code(
    subnet: PreTrainedModel, parent_config: PreTrainedConfig, shape: Shape, architecture: Architecture
) -> bool:
    """Whether the checkpoint of this subnet will load only with `trust_remote_code=True`."""
    return _as_saved(subnet, parent_config, shape, architecture)[1] is not None


def _as_saved(
    subnet: PreTrainedModel, parent_config: PreTrainedConfig, shape: Shape, architecture: Architecture
) -> tuple[PreTrainedModel, str | None]:
    """The subnet's tensors in a model built from nothing but the configuration that will be saved, and the
    code to save with it if the model needs any."""
    state = native_state(subnet)
    ways = _plain_configs(type(subnet), parent_config, shape, architecture)
    ordered = _in_the_parents_order(subnet, shape) if ways else state
    for model_class, config in ways:
        model = _filled(model_class, config, ordered)
        if model is not None:
            return model, None
    code = _code_for(subnet, parent_config)
    module: dict[str, Any] = {"__name__": Path(CODE).stem}
    exec(compile(code, CODE, "exec"), module)
    config = _own_config(module["SubnetConfig"], subnet, parent_config, shape, architecture)
    model = _filled(module["SubnetForCausalLM"], config, state)
    if model is None:
        raise InputError(f"the subnet does not have the widths of the architecture {architecture.digest}")
    return model, code


def _in_the_parents_order(subnet: PreTrainedModel, shape: Shape) -> dict[str, Tensor]:
    """The tensors of a subnet for a plain checkpoint: where position biases hang on the numbers of heads, and
    all heads have been kept, with these in their order and no numbers noted."""
    layers = layers_of(subnet)
    if not layers[0].layout.alibi or any(
        len(layer.attention.heads) < layer.attention.parent_heads for layer in layers
    ):
        return native_state(subnet)
    copied = copy.deepcopy(subnet)
    for layer in layers_of(copied):
        numbers = layer.attention.heads.view(-1, shape.queries_per_group)
        reorder_heads(layer, shape, numbers[:, 0].argsort(), numbers.argsort(dim=1))
        del layer.attention.heads
    return native_state(copied)


def _filled(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, state: dict[str, Tensor]
) -> PreTrainedModel | None:
    """A model of this configuration holding these tensors themselves, or None if it is of other shapes."""
    with torch.device("meta"):
        try:
            model = model_class(config)
        except ValueError:  # heads that the family's own attention refuses
            return None
    if {name: weight.shape for name, weight in model.state_dict().items()} != {
        name: weight.shape for name, weight in state.items()
    }:
        return None
    model.load_state_dict(state, assign=True)
    return model


def _settings(parent_config: PreTrainedConfig, shape: Shape, architecture: Architecture) -> dict[str, Any]:
    """The parent's settings with those that follow the kept blocks, without what names the parent itself."""
    own = depth_settings(parent_config, architecture)
    own |= width_settings(parent_config, shape, architecture.hidden)
    settings = parent_config.to_dict() | _by_own_names(parent_config, own)
    for name in _OF_THE_PARENT_ALONE:
        settings.pop(name, None)
    return settings


def _by_own_names(config: PreTrainedConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by the names that the family's configuration is written with."""
    return {config.attribute_map.get(name, name): value for name, value in settings.items()}


def _plain_configs(
    model_class: type[PreTrainedModel],
    parent_config: PreTrainedConfig,
    shape: Shape,
    architecture: Architecture,
) -> list[tuple[type[PreTrainedModel], PreTrainedConfig]]:
    """Ways to describe the architecture by one width for all blocks, best first; empty if it has several."""
    block = architecture.blocks[0]
    if not (architecture.is_uniform and block.kv_groups and block.ffn and block.head_width is None):
        return []
    widths = {"num_attention_heads": block.heads, "num_key_value_heads": block.kv_groups}
    widths[family_of(parent_config).layout.width] = block.ffn
    settings = _settings(parent_config, shape, architecture) | _by_own_names(parent_config, widths)
    ways: list[tuple[type[PreTrainedModel], PreTrainedConfig]] = []
    with suppress(StrictDataclassError):  # the heads do not divide the hidden width
        ways.append((model_class, type(parent_config)(**settings)))
    if parent_config.model_type == "llama":
        for name in ("attention_bias", "mlp_bias", "pretraining_tp"):
            settings.pop(name, None)
        ways.append((MistralForCausalLM, MistralConfig(**settings, sliding_window=None)))
    return ways


def _own_config(
    config_class: type[PreTrainedConfig],
    subnet: PreTrainedModel,
    parent_config: PreTrainedConfig,
    shape: Shape,
    architecture: Architecture,
) -> PreTrainedConfig:
    """The configuration of a heterogeneous subnet: globally the parent's widths, and every block's own, with
    the biases of output matrices where the subnet has such as the family does not build."""
    per_layer: dict[int, dict[str, Any]] = {}
    narrow = any(block.head_width for block in architecture.blocks)
    for index, block in enumerate(architecture.blocks):
        per_layer[index] = {"head_width": block.head_width or shape.head_dim} if narrow else {}
        widths = {
            "num_attention_heads": block.heads,
            "num_key_value_heads": block.kv_groups,
            family_of(parent_config).layout.width: block.ffn,
        }
        # By the family's own names its own classes refuse to read them as if they were global.
        per_layer[index] |= _by_own_names(parent_config, widths)
        skipped = [name for name, width in ((ATTENTION, block.kv_groups), (MLP, block.ffn)) if not width]
        per_layer[index]["skip"] = skipped
    added = _added_biases(subnet, parent_config, architecture)
    if any(added):
        for index, parts in enumerate(added):
            per_layer[index]["output_bias"] = parts
    stem = Path(CODE).stem
    return config_class(
        **_settings(parent_config, shape, architecture),
        per_layer_config=per_layer,
        auto_map={"AutoConfig": f"{stem}.SubnetConfig", "AutoModelForCausalLM": f"{stem}.SubnetForCausalLM"},
    )


def _added_biases(
    subnet: PreTrainedModel, parent_config: PreTrainedConfig, architecture: Architecture
) -> list[list[str]]:
    """The modules of each block whose output matrix has a bias that the family's own has not."""
    layers = layers_of(subnet)
    with torch.device("meta"):
        whole = type(layers[0].module)(parent_config, 0)
    added = []
    for layer, block in zip(layers, architecture.blocks, strict=True):
        kept = [ATTENTION] if block.kv_groups else []
        kept += [MLP] if block.ffn and not layer.layout.experts else []
        paths = {part: layer.path("o_proj" if part == ATTENTION else "down_proj") for part in kept}
        added.append(
            [
                part for part, path in paths.items()
                if layer.output(part).bias is not None and whole.get_submodule(path).bias is None
            ]
        )  # fmt: skip
    return added


def _imports(config_class: type, block_class: type, model_class: type) -> str:
    """The lines of `modeling_subnet.py` that import the family's classes."""
    models = model_class.__module__
    return f"""\
from {config_class.__module__} import {config_class.__name__} as FamilyConfig
from {models} import {block_class.__name__} as FamilyBlock
from {models} import {model_class.__name__} as FamilyForCausalLM
"""


def _names(family: str, layout: modeling_subnet.Layout) -> str:
    """Those that say which family it is, and where that has its parts."""
    usual = modeling_subnet.Layout()._asdict()
    other = [f"{name}={value!r}" for name, value in layout._asdict().items() if value != usual[name]]
    return f"""\
FAMILY = "{family}"
LAYOUT = Layout({", ".join(other)})
"""


def _code_for(subnet: PreTrainedModel, parent_config: PreTrainedConfig) -> str:
    """`modeling_subnet.py` for the subnet's family; as it stands in this project, it is LLaMA's."""
    code = Path(modeling_subnet.__file__).read_text(encoding="utf-8")
    llama = modeling_subnet
    own = (type(parent_config), type(blocks_of(subnet)[0]), type(subnet))
    for written, wanted in (
        (_imports(llama.FamilyConfig, llama.FamilyBlock, llama.FamilyForCausalLM), _imports(*own)),
        (
            _names(llama.FAMILY, llama.LAYOUT),
            _names(str(parent_config.model_type), family_of(parent_config).layout),
        ),
    ):
        if code.count(written) != 1:
            raise RuntimeError(f"{CODE} does not hold the lines that name its family as expected")
        code = code.replace(written, wanted)
    return code


def _record(parent_config: PreTrainedConfig, shape: Shape, architecture: Architecture) -> str:
    """`architecture.json`: what was cut out of what, exactly."""
    dimensions = asdict(shape)
    digest = hashlib.sha256(json.dumps(dimensions, sort_keys=True).encode()).hexdigest()[:16]
    record = {
        "architecture": json.loads(architecture.to_json()),
        "digest": architecture.digest,
        "parent": str(parent_config.name_or_path),
        "parent_shape": dimensions,
        "parent_shape_digest": digest,
    }
    return json.dumps(record, indent=2) + "\n"


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / RECORD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} holds something that is no checkpoint of this project; choose another folder"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
