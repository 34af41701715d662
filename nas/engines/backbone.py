"""The subnet without its head, for engines that ask transformers for one (`AutoModel`).

The class below is put at the end of the checkpoint's own `modeling_subnet.py`, and needs what is in there.
"""

from typing import Any

from nas.modeling_subnet import SubnetConfig, SubnetForCausalLM


class SubnetModel(SubnetForCausalLM):
    """What is made by this name is the family's own model without head, with the blocks of the subnet."""

    def __new__(cls, config: SubnetConfig, *_: "Any", **__: "Any") -> "Any":
        """The model inside the one with a head, which is let go."""
        return SubnetForCausalLM(config).base_model
