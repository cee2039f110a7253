"""Replayed studies: a surrogate that predicts, costs that add up, a report that can be checked."""

import random
from pathlib import Path

import numpy as np
import pytest

from alrq_core.sensitivity.table import flat_table
from benchmarks.quality_report import cost_to, volume_at, write_report
from benchmarks.replay import CHANCE, Arm, Costs, area, replay
from benchmarks.surrogate import Curves, Features, Landscape, noise_covariance
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.spaces import make_space
from tests.simulated import make_inventory

INVENTORY = make_inventory(blocks=3)
SPACE = make_space("joint", INVENTORY)
STEPS = (25, 50, 100)
COSTS = Costs(half=4.0, full=8.0, table=60.0)
NOISE = 0.01


def true_loss(allocation: Allocation, step: int) -> float:
    """Bits cost more in earlier modules, and rank helps ever less."""
    choices = list(allocation.choices.values())
    damage = sum(0.1 * 4.0 ** (2 - c.bits) / (1 + n) for n, c in enumerate(choices))
    gain = sum(np.log2(1 + c.rank) for c in choices) / 5 / len(choices)
    return float(0.4 + damage + 0.2 * np.exp(-3 * gain) + 10 / step / 25)


@pytest.fixture(scope="module")
def curves() -> Curves:
    generator, chance = random.Random(0), np.random.default_rng(0)
    drawn = [SPACE.draw_all(generator) for _ in range(80)]
    allocations = [a for number, a in enumerate(drawn) for _ in range(1 + (number % 4 == 0))]
    seeds = [int(n > 0 and a == allocations[n - 1]) for n, a in enumerate(allocations)]
    losses = np.array([[true_loss(a, step) for step in STEPS] for a in allocations])
    return Curves(
        allocations=tuple(allocations),
        seeds=np.array(seeds),
        sources=("random",) * len(allocations),
        steps=STEPS,
        losses=losses + NOISE * chance.standard_normal(losses.shape),
        seconds=np.full(len(allocations), 50.0),
    )


@pytest.fixture(scope="module")
def landscape(curves: Curves) -> Landscape:
    return Landscape(curves, INVENTORY)


def arm(searcher: str = "random", scheduler: str = "none", plain: bool = True) -> Arm:
    return Arm(
        name="x", searcher=searcher, scheduler=scheduler, plain=plain, table=flat_table(SPACE)
    )


def test_the_surrogate_predicts_what_it_has_not_seen(landscape: Landscape) -> None:
    unseen = [SPACE.draw_all(random.Random(seed)) for seed in range(100, 160)]
    predicted = [landscape.expected(allocation)[-1] for allocation in unseen]
    true = [true_loss(allocation, 100) for allocation in unseen]

    assert np.corrcoef(predicted, true)[0, 1] > 0.9
    assert landscape.quality[-1].spearman > 0.75
    assert landscape.quality[-1].error < landscape.quality[-1].spread


def test_noise_comes_from_allocations_with_two_seeds(curves: Curves) -> None:
    covariance = noise_covariance(curves)

    assert np.sqrt(np.diag(covariance)) == pytest.approx(NOISE, rel=0.5)
    assert abs(covariance[0, 1]) < NOISE**2


def test_a_seed_shows_an_allocation_the_same_losses_again(landscape: Landscape) -> None:
    one, two = SPACE.smallest(), SPACE.largest()

    assert (landscape.observed(one, 0) == landscape.observed(one, 0)).all()
    assert (landscape.observed(one, 0) != landscape.observed(one, 1)).all()
    assert (landscape.observed(one, 0) != landscape.observed(two, 0)).all()


def test_features_tell_modules_blocks_and_parts_apart() -> None:
    features = Features(INVENTORY)
    single, means = features(SPACE.nearest_uniform(16, 0))

    assert not single.any()
    assert not means.any()
    assert (features(SPACE.nearest_uniform(2, 0))[1][:6] == 1).any()


@pytest.mark.parametrize("workers", [1, 4])
def test_full_trials_cost_their_steps_and_one_scoring(landscape: Landscape, workers: int) -> None:
    found = replay(arm(), SPACE, landscape, COSTS, limit=540.0, workers=workers, seed=0, budget=5)

    assert len(found.costs) == 5
    assert found.costs[-1] == 540.0
    assert len(found.fronts) == 5
    assert 1 <= len(set(found.fronts[-1])) == len(found.fronts[-1]) <= 5


@pytest.mark.parametrize("searcher", ["alrq", "tpe", "nsga2", "random"])
def test_rungs_cost_less_and_every_searcher_is_replayed(
    landscape: Landscape, searcher: str
) -> None:
    halving = arm(searcher, "front-asha", plain=False)
    found = replay(halving, SPACE, landscape, COSTS, limit=1500.0, workers=2, seed=0, budget=20)

    # Of 1500 / 108 full trials fewer are left, since others were looked at.
    assert 1 <= len(found.costs) <= 12
    assert found.costs == sorted(found.costs)
    assert found.costs[-1] <= 1500.0 + 108


def test_the_area_by_hand() -> None:
    large, middle, small = SPACE.largest(), SPACE.nearest_uniform(3, 8), SPACE.nearest_uniform(2, 8)
    sizes = [np.log2(memory_bytes(a, INVENTORY)) for a in (large, middle, small)]
    losses = {large: 0.1, middle: 0.2, small: 0.4}
    first = (CHANCE - 0.4) * (sizes[0] - sizes[2])

    assert area([large], losses.__getitem__, SPACE) == 0.0
    assert area([small, large], losses.__getitem__, SPACE) == pytest.approx(first)
    assert area([small, middle], losses.__getitem__, SPACE) == pytest.approx(
        first + 0.2 * (sizes[0] - sizes[1])
    )


def test_the_report_by_hand(tmp_path: Path) -> None:
    peer = {"arm": "tpe", "workers": 1, "costs": [100.0, 5000.0], "volumes": [0.1, 0.4]}
    ours = {"arm": "alrq", "workers": 1, "costs": [100.0, 500.0], "volumes": [0.2, 0.5]}
    lines = [{**line, "seed": seed} for line in (peer, ours) for seed in range(3)]
    write_report(tmp_path, lines, [], 100.0)
    text = (tmp_path / "search_quality.md").read_text(encoding="utf-8")

    assert volume_at(ours, 99.0) == 0.0
    assert volume_at(ours, 100.0) == 0.2
    assert cost_to(ours, 0.4) == 500.0
    assert cost_to(ours, 0.6) == float("inf")
    assert "| alrq | 0.500 [0.500, 0.500] | 0.500 [0.500, 0.500] | 10.0 [10.0, 10.0] |" in text
    assert (tmp_path / "search_quality.png").stat().st_size > 10_000
