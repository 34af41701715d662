"""Search a super-network for its Pareto front: quality against cost, by Optuna's NSGA-II."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import NSGAIISampler

from nas.architecture import Architecture
from nas.pairs import quiet_optuna
from nas.supernet.space import KNOBS, UniformSpace


@dataclass(frozen=True)
class Point:
    """A measured subnet: its loss in nats per token and its cost, both better when smaller."""

    architecture: Architecture
    loss: float
    cost: float


def search_front(
    space: UniformSpace,
    excess: Callable[[Architecture], float],
    measure: Callable[[Architecture], Point],
    *,
    starts: Iterable[Architecture] = (),
    measurements: int,
    population: int = 16,
    seed: int = 0,
) -> list[Point]:
    """Up to `measurements` distinct subnets whose `excess` over the budget is 0 or less, as measured.

    `starts` are asked for first, as far as they are within the budget. NSGA-II is told of a proposal beyond
    the budget by how much it is beyond, and nothing beyond is ever measured; proposals are bounded at 40 for
    each measurement, so that a budget which hardly anything fits ends the search instead of keeping it.
    """
    with quiet_optuna():
        sampler = NSGAIISampler(population_size=population, seed=seed)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    free: dict[str, BaseDistribution] = {
        name: IntDistribution(0, len(choices) - 1) for name, choices in space.knobs.items()
    }
    for start in dict.fromkeys(starts):
        if excess(start) <= 0:
            choice = space.choice_of(start)
            study.enqueue_trial({name: space.knobs[name].index(choice[name]) for name in KNOBS})
    found: dict[Architecture, Point] = {}
    for _ in range(40 * measurements):
        if len(found) >= min(measurements, space.size):
            break
        trial = study.ask(free)
        architecture = space.build({name: space.knobs[name][trial.params[name]] for name in KNOBS})
        over = excess(architecture)
        trial.set_constraint("budget", over)
        if over > 0:
            study.tell(trial, [float("inf"), float("inf")])
            continue
        if architecture not in found:
            found[architecture] = measure(architecture)
        study.tell(trial, [found[architecture].loss, found[architecture].cost])
    return list(found.values())


def front_of(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in one and equals in the other, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, each.loss, each.architecture)):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front
