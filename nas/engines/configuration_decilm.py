"""The configuration of a DeciLM: LLaMA whose blocks have their own KV heads and FFN width, or lack a part.

Secateur (Apache-2.0) puts this file beside the weights of a subnet that it exports for vLLM, which reads
`config.block_configs[i].attention.no_op` and the like by attribute. It needs nothing but transformers.
"""

from types import SimpleNamespace
from typing import Any

from transformers.models.llama.configuration_llama import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """LLaMA's configuration with `block_configs`, one for each block: dictionaries in JSON, objects here.

    A value of null in JSON is no attribute here, for engines ask whether there is one.
    """

    model_type = "nemotron-nas"

    @property
    def block_configs(self) -> list[SimpleNamespace]:
        """Of each block, its `attention` and its `ffn`."""
        return self.__dict__.get("_blocks", [])

    @block_configs.setter
    def block_configs(self, blocks: list[Any]) -> None:
        self.__dict__["_blocks"] = [
            SimpleNamespace(**{part: _part(settings) for part, settings in block.items()})
            if isinstance(block, dict)
            else block
            for block in blocks
        ]

    def validate_architecture(self) -> None:
        """Heads of a width of their own need not divide the hidden width."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = super().to_dict()
        found.pop("_blocks", None)
        found["block_configs"] = [
            {part: dict(vars(settings)) for part, settings in vars(block).items()}
            for block in self.block_configs
        ]
        return found


def _part(settings: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**{name: value for name, value in settings.items() if value is not None})
