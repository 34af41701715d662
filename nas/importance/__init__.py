"""Importance criteria: which units of a block to keep first.

A criterion scores the units of one block from the evidence on a parent. Adding one is one file and one line
here; `nas.importance.contract` says what it promises.
"""

from nas.importance.activation import activation
from nas.importance.chance import chance
from nas.importance.criterion import Criterion, of_outputs
from nas.importance.elimination import elimination
from nas.importance.fluctuation import fluctuation
from nas.importance.fusion import fused
from nas.importance.magnitude import magnitude, norm
from nas.importance.obs import obs
from nas.importance.output_energy import output_energy
from nas.importance.scores import UnitScores
from nas.importance.second_moment import second_moment
from nas.importance.taylor import taylor
from nas.importance.wanda import wanda

CRITERIA: dict[str, Criterion] = {
    "elimination": Criterion(of_outputs(elimination), invariant=False, experts=True),
    "output_energy": Criterion(of_outputs(output_energy), invariant=True, experts=True),
    "second_moment": Criterion(second_moment, invariant=False),
    "obs": Criterion(obs, invariant=False),
    "wanda": Criterion(of_outputs(wanda), invariant=True, experts=True),
    "fluctuation": Criterion(fluctuation, invariant=True),
    "taylor_vector": Criterion(taylor("vector"), invariant=True, gradients=True),
    "taylor_element1": Criterion(taylor("element1"), invariant=True, gradients=True),
    "taylor_element2": Criterion(taylor("element2"), invariant=True, gradients=True),
    "taylor_mix": Criterion(taylor("mix"), invariant=True, gradients=True),
    "fused_reliability": Criterion(fused("reliability"), invariant=True, gradients=True),
    "fused_attention": Criterion(fused("attention"), invariant=True, gradients=True),
    "activation": Criterion(activation, invariant=False),
    "magnitude": Criterion(of_outputs(magnitude), invariant=False),
    "l1": Criterion(norm(1), invariant=False),
    "l2": Criterion(norm(2), invariant=False),
    "random": Criterion(chance, invariant=True, experts=True),
}

__all__ = ["CRITERIA", "Criterion", "UnitScores"]
