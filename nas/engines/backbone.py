"""The subnet of this folder without its head, for engines that ask transformers for one (`AutoModel`).

Secateur (Apache-2.0) puts this file beside `modeling_subnet.py` in checkpoints that it exports for vLLM's
Transformers backend. It needs nothing but torch and transformers.
"""

from typing import Any

from nas.modeling_subnet import SubnetConfig, SubnetForCausalLM


class SubnetModel(SubnetForCausalLM):
    """What is made by this name is the family's own model, with the blocks of the subnet."""

    def __new__(cls, config: SubnetConfig, *_: Any, **__: Any) -> Any:
        """The model inside the one with a head, which is let go."""
        return SubnetForCausalLM(config).base_model
