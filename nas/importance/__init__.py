"""Importance criteria: which units of one module to keep first.

A criterion is a function `(weight, gram, unit) -> order`: `weight` (d, n * unit) is the module's output
matrix, `gram` (n * unit, n * unit) the mean outer product of its input, `unit` how many neighbouring input
columns make one unit; the result is a permutation of range(n), most important first. Adding one is one file
and one line here.
"""

from collections.abc import Callable

from torch import Tensor

from nas.importance.elimination import elimination
from nas.importance.magnitude import magnitude
from nas.importance.output_energy import output_energy

Criterion = Callable[[Tensor, Tensor, int], Tensor]

CRITERIA: dict[str, Criterion] = {
    "elimination": elimination,
    "output_energy": output_energy,
    "magnitude": magnitude,
}

__all__ = ["CRITERIA", "Criterion", "elimination", "magnitude", "output_energy"]
