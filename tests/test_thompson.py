"""The sampler on a synthetic, additive problem whose table is only roughly right."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from alrq_core.sensitivity.table import ModuleVisibility, VisibilityTable
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.spaces import Space, make_space
from tests.simulated import make_inventory
from tune.search.effects import EffectsModel
from tune.search.front import hypervolume
from tune.search.thompson import ThompsonSearch
from tune.search.tried import Tried

RUNGS = (0, 50, 200)
Loss = Callable[[Allocation], float]


@pytest.fixture(scope="module")
def space() -> Space:
    return make_space("joint", make_inventory(blocks=6))


def make_table(space: Space) -> VisibilityTable:
    generator = random.Random(0)
    modules = {}
    for name in space.inventory.names:
        ranks, size = space.ranks[name], space.group_sizes[name][0]
        visible = 10 ** generator.uniform(-3, -1)
        formats = [space.choice(name, bits, 0, size).format for bits in space.bits[name]]
        modules[name] = ModuleVisibility(
            ranks=tuple(ranks),
            damage={
                f: tuple(visible * 4.0 ** (2 - f.bits) / (1 + r) for r in ranks) for f in formats
            },
        )
    return VisibilityTable(modules=modules, resolution=0.01, sequences=1, seconds=1.0)


def make_loss(space: Space, table: VisibilityTable) -> Loss:
    """The table's modules, each wrong by a factor of up to three, and a little noise."""
    generator = random.Random(1)
    wrong = {name: 3 ** generator.uniform(-1, 1) for name in space.inventory.names}
    noise = random.Random(2)

    def loss(allocation: Allocation) -> float:
        effects = sum(wrong[n] * table.damage(n, c) for n, c in allocation.choices.items())
        return effects * math.exp(noise.gauss(0, 0.02))

    return loss


def make_search(space: Space, limit: int | None = None, seed: int = 0) -> ThompsonSearch:
    return ThompsonSearch(space, make_table(space), RUNGS, limit, seed)


def proposed(search: ThompsonSearch, space: Space, number: int) -> Tried:
    allocation = search.propose(number)
    size = memory_bytes(allocation, space.inventory)
    trial = Tried(id=f"t{number}", allocation=allocation, memory_bytes=size)
    search.tell(trial)
    return trial


def run(space: Space, search: ThompsonSearch, loss: Loss, trials: int) -> list[Tried]:
    done = []
    for number in range(trials):
        trial = proposed(search, space, number)
        objective = loss(trial.allocation)
        done.append(replace(trial, ended="completed", step=RUNGS[-1], objective=objective))
        search.tell(done[-1])
    return done


def area(trials: list[Tried]) -> float:
    points = [(t.objective, math.log(t.memory_bytes)) for t in trials if t.objective is not None]
    return hypervolume(points, (1.0, math.log(4e7)))


def test_it_finds_a_better_front_than_random_draws(space: Space) -> None:
    loss, chance = make_loss(space, make_table(space)), random.Random(0)
    found = run(space, make_search(space), loss, 12)
    drawn = [space.draw_all(chance) for _ in range(60)]
    by_chance = [
        Tried(id="", allocation=a, memory_bytes=memory_bytes(a, space.inventory), objective=loss(a))
        for a in drawn
    ]

    assert area(found) > area(by_chance)


def test_expected_losses_are_nearer_to_the_truth_than_observed_ones(space: Space) -> None:
    """With noise of half of what is lost."""
    assert np.mean([remaining_error(space, seed) for seed in range(4)]) < 0.9


def remaining_error(space: Space, seed: int) -> float:
    """Return the spread of the expected losses' errors, in parts of the observed losses'."""
    loss, noise = make_loss(space, make_table(space)), random.Random(seed)
    search, true = make_search(space, seed=seed), []

    def observed(allocation: Allocation) -> float:
        true.append(loss(allocation))
        return true[-1] * math.exp(noise.gauss(0, 0.5))

    seen = [trial.objective or 0.0 for trial in run(space, search, observed, 30)]
    expected = search.expected_losses()

    assert list(expected) == [f"t{number}" for number in range(30)]
    left = np.std(np.log(list(expected.values())) - np.log(true))
    return float(left / np.std(np.log(seen) - np.log(true)))


def test_nothing_is_expected_before_a_trial_is_complete(space: Space) -> None:
    search = make_search(space)
    proposed(search, space, 0)

    assert search.expected_losses() == {}


def test_proposals_that_run_together_differ_and_fit(space: Space) -> None:
    smallest = memory_bytes(space.smallest(), space.inventory)
    search = make_search(space, round(1.3 * smallest))
    asked = [proposed(search, space, number) for number in range(12)]

    assert len({trial.allocation for trial in asked}) == 12
    assert all(trial.memory_bytes <= 1.3 * smallest + 1 for trial in asked)


def test_a_limit_is_used_to_the_full(space: Space) -> None:
    """More bytes are always better here, so the best that fits is next to the limit."""
    limit = round(1.5 * memory_bytes(space.smallest(), space.inventory))
    found = run(space, make_search(space, limit), make_loss(space, make_table(space)), 12)
    best = min(found, key=lambda trial: trial.objective or 0.0)

    assert 0.97 * limit < best.memory_bytes <= limit


def test_it_knows_stopped_trials_by_their_rung_and_ignores_failed_ones(space: Space) -> None:
    search = make_search(space)
    stopped, failed, odd = (proposed(search, space, number) for number in range(3))
    search.tell(replace(stopped, ended="stopped", step=0, objective=0.6))
    search.tell(replace(odd, ended="stopped", step=51, objective=0.6))
    search.tell(replace(failed, ended="failed", step=0, objective=0.6))
    seen, zeros = search._seen()

    assert seen.rung.tolist() == [2]
    assert seen.excess.tolist() == [0.6]
    assert zeros.tolist() == [0.0] * 3
    assert len(search._known()) == 2
    assert isinstance(search.propose(3), Allocation)


def go_on(trial: Tried, loss: float, chance: random.Random) -> Tried:
    """Report at the next rung, or fail."""
    if chance.random() < 0.1:
        return replace(trial, ended="failed")
    later = replace(trial, rungs=trial.rungs + 1, step=RUNGS[trial.rungs], objective=loss)
    if later.rungs == len(RUNGS):
        return replace(later, ended="completed")
    return replace(later, ended="stopped") if chance.random() < 0.2 else later


@pytest.mark.parametrize("rungs", [RUNGS, (50, 100, 200)])
def test_what_it_keeps_changes_no_proposal(space: Space, rungs: tuple[int, ...]) -> None:
    """Trials go on, fail and end between proposals; a new search that is told all says the same.

    More than there is place for at first.
    """
    table, chance = make_table(space), random.Random(0)
    loss = make_loss(space, table)
    search = ThompsonSearch(space, table, rungs, seed=0)
    trials: dict[str, Tried] = {}
    for number in range(80):
        if number % 8 == 0:
            fresh = ThompsonSearch(space, table, rungs, seed=0)
            for trial in trials.values():
                fresh.tell(trial)
            assert fresh.propose(number) == search.propose(number)
        trial = proposed(search, space, number)
        trials[trial.id] = trial
        running = [t for t in trials.values() if t.ended is None]
        for trial in chance.sample(running, min(2, len(running))):
            trials[trial.id] = go_on(trial, loss(trial.allocation), chance)
            search.tell(trials[trial.id])
    assert {t.ended for t in trials.values()} == {None, "completed", "stopped", "failed"}


def test_a_trial_is_read_once(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(model: EffectsModel, allocation: Allocation) -> np.ndarray:
        read.append(allocation)
        return index(model, allocation)

    index, search = EffectsModel.index, make_search(space)
    done = run(space, search, make_loss(space, make_table(space)), 12)
    monkeypatch.setattr(EffectsModel, "index", counted)
    search.propose(12)

    assert not {trial.allocation for trial in done} & set(read)


def test_how_a_trial_ended_is_final(space: Space) -> None:
    """A start that is judged counts, whatever becomes of its training."""
    search = make_search(space)
    (trial,) = run(space, search, make_loss(space, make_table(space)), 1)
    expected = search.expected_losses()
    search.tell(replace(trial, ended="failed", objective=None))

    assert search.expected_losses() == expected
    assert list(expected) == ["t0"]


def test_it_searches_where_losses_can_be_told(space: Space) -> None:
    """Below a quarter of what can be told nothing is better, so that no bytes are spent on it."""
    table = make_table(space)
    found = run(space, make_search(space), make_loss(space, table), 24)
    losses = [(trial.objective or 0.0) / table.resolution for trial in found]

    assert sum(0.2 < loss < 5 for loss in losses) > 18
