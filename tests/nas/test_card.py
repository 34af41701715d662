"""A model card says how to load a subnet, what is left of each block, and how good it is."""

import pytest

from nas.card import model_card
from tests.nas.tiny_models import architecture_of_cut, permuted_parent


@pytest.mark.parametrize("name, units", [("llama", "FFN channels"), ("mixtral", "experts")])
def test_the_card_loads_what_it_describes(name: str, units: str) -> None:
    shape = permuted_parent(name)[1]
    for code in (True, False):
        card = model_card(
            architecture_of_cut("narrow", shape),
            shape,
            parent="someone/parent",
            licence="apache-2.0",
            method=["ranked", "repaired"],
            protocol="some text, windows of 256",
            scores={"perplexity": (44.0, 40.0)},
            costs={"parameters": (1_000_000, 2_000_000)},
            code=code,
        )
        assert card.startswith("---\n") and '\nlicense: "apache-2.0"\n' in card
        assert ("trust_remote_code=True" in card) == code
        assert "| perplexity | 44 | 40 | 1.100 |" in card
        assert "| parameters | 1,000,000 | 2,000,000 | 0.500 |" in card
        assert f"| channels a head | {units} |" in card and f"8 channels and {shape.ffn} {units}." in card
        assert (
            f"| 1 | 1 | 2 | 2 | 8 | {shape.ffn} |" in card
            and "2. repaired" in card
            and "windows of 256" in card
        )
