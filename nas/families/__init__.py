"""Where each model family keeps its projections, and which families are supported."""

from nas.families.family import Family
from nas.families.layer import ATTENTION, MLP, OUTPUTS, Layer, blocks_of, layers_of, of_batch
from nas.families.plain import native_state, plain, plain_block, write_native
from nas.families.shapes import count, shape_of, width_of
from nas.families.table import FAMILIES, REFUSED, family_named, family_of, layout_of
from nas.families.unknown import check_supported

__all__ = [
    "ATTENTION",
    "FAMILIES",
    "MLP",
    "OUTPUTS",
    "REFUSED",
    "Family",
    "Layer",
    "blocks_of",
    "check_supported",
    "count",
    "family_named",
    "family_of",
    "layers_of",
    "layout_of",
    "native_state",
    "of_batch",
    "plain",
    "plain_block",
    "shape_of",
    "width_of",
    "write_native",
]
