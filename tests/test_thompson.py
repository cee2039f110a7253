"""The sampler on a synthetic, additive problem whose table is only roughly right."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState, create_trial

from alrq_core.sensitivity.table import ModuleVisibility, VisibilityTable
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.spaces import Space, make_space
from tests.simulated import make_inventory
from tune.search import thompson
from tune.search.front import hypervolume
from tune.search.parameters import distributions, from_params
from tune.search.thompson import ThompsonSampler

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


def run(space: Space, sampler: BaseSampler, loss: Loss, trials: int) -> list[tuple[float, float]]:
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    points = []
    for _ in range(trials):
        trial = study.ask(distributions(space))
        allocation = from_params(trial.params, space)
        size = memory_bytes(allocation, space.inventory)
        points.append((loss(allocation), float(size)))
        study.tell(trial, points[-1])
    return points


def area(points: list[tuple[float, float]]) -> float:
    return hypervolume([(loss, math.log(size)) for loss, size in points], (1.0, math.log(4e7)))


def test_it_finds_a_better_front_than_random_draws(space: Space) -> None:
    table = make_table(space)
    found = area(
        run(space, ThompsonSampler(space, table, RUNGS, seed=0), make_loss(space, table), 12)
    )
    by_chance = area(run(space, RandomSampler(seed=0), make_loss(space, table), 60))

    assert found > by_chance


def test_expected_losses_are_nearer_to_the_truth_than_observed_ones(space: Space) -> None:
    """With noise of half of what is lost."""
    assert np.mean([remaining_error(space, seed) for seed in range(4)]) < 0.9


def remaining_error(space: Space, seed: int) -> float:
    """Return the spread of the expected losses' errors, in parts of the observed losses'."""
    table = make_table(space)
    loss, noise = make_loss(space, table), random.Random(seed)
    sampler = ThompsonSampler(space, table, RUNGS, seed=seed)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    true = []
    for _ in range(30):
        trial = study.ask(distributions(space))
        allocation = from_params(trial.params, space)
        true.append(loss(allocation))
        size = memory_bytes(allocation, space.inventory)
        study.tell(trial, [true[-1] * math.exp(noise.gauss(0, 0.5)), float(size)])
    trials = study.get_trials(deepcopy=False)
    expected = sampler.expected_losses(trials)
    observed = [trial.values[0] for trial in trials]

    assert list(expected) == list(range(30))
    left = np.std(np.log(list(expected.values())) - np.log(true))
    return float(left / np.std(np.log(observed) - np.log(true)))


def test_nothing_is_expected_before_a_trial_is_complete(space: Space) -> None:
    sampler = ThompsonSampler(space, make_table(space), RUNGS, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    study.ask(distributions(space))

    assert sampler.expected_losses(study.get_trials(deepcopy=False)) == {}


def test_proposals_that_run_together_differ_and_fit(space: Space) -> None:
    smallest = memory_bytes(space.smallest(), space.inventory)
    sampler = ThompsonSampler(space, make_table(space), RUNGS, round(1.3 * smallest), seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    asked = [from_params(study.ask(distributions(space)).params, space) for _ in range(12)]

    assert len(set(asked)) == 12
    assert all(memory_bytes(a, space.inventory) <= 1.3 * smallest + 1 for a in asked)


def test_a_limit_is_used_to_the_full(space: Space) -> None:
    """More bytes are always better here, so the best that fits is next to the limit."""
    table = make_table(space)
    limit = round(1.5 * memory_bytes(space.smallest(), space.inventory))
    sampler = ThompsonSampler(space, table, RUNGS, limit, seed=0)
    found = run(space, sampler, make_loss(space, table), 12)

    assert 0.97 * limit < min(found)[1] <= limit


def test_it_knows_stopped_trials_by_their_rung_and_ignores_failed_ones(space: Space) -> None:
    sampler = ThompsonSampler(space, make_table(space), RUNGS, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    stopped, failed, odd = (study.ask(distributions(space)) for _ in range(3))
    for trial, step in ((stopped, 0), (odd, 51)):
        trial.set_user_attr("objective", 0.6)
        trial.set_user_attr("step", step)
        study.tell(trial, state=TrialState.PRUNED)
    study.tell(failed, state=TrialState.FAIL)
    known = study.get_trials(deepcopy=False)

    assert sampler._observed(known[0]) == (2, 0.6)
    assert sampler._observed(known[2])[1] is None
    assert isinstance(sampler.propose(known, 3), Allocation)


def go_on(study: optuna.Study, trial: optuna.Trial, loss: float, chance: random.Random) -> bool:
    """Report at the next rung, or fail; tell whether the trial still runs."""
    rung = 1 + trial.user_attrs.get("rung", -1)
    if chance.random() < 0.1:
        study.tell(trial, state=TrialState.FAIL)
        return False
    for key, value in {"rung": rung, "step": RUNGS[rung], "objective": loss}.items():
        trial.set_user_attr(key, value)
    if rung == len(RUNGS) - 1:
        study.tell(trial, [loss, 1.0])
    elif chance.random() < 0.2:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        return True
    return False


def test_what_it_keeps_changes_no_proposal(space: Space) -> None:
    """Trials go on, fail, end and come twice between proposals; a new sampler says the same."""
    table, chance = make_table(space), random.Random(0)
    loss = make_loss(space, table)
    sampler = ThompsonSampler(space, table, RUNGS, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    running: list[optuna.Trial] = []
    for number in range(30):
        trial = study.ask(distributions(space))
        earlier = study.get_trials(deepcopy=False)[:-1]
        fresh = ThompsonSampler(space, table, RUNGS, seed=0)

        assert from_params(trial.params, space) == fresh.propose(earlier, trial.number)
        running.append(trial)
        if number % 9 == 8:
            same, every = running[0].params, running[0].distributions
            study.add_trial(create_trial(params=same, distributions=every, values=[0.7, 1.0]))
        for trial in chance.sample(running, min(3, len(running))):
            if not go_on(study, trial, loss(from_params(trial.params, space)), chance):
                running.remove(trial)
    states = {trial.state for trial in study.get_trials(deepcopy=False)}
    assert states == set(TrialState) - {TrialState.WAITING}


def test_a_proposal_reads_only_the_newest_trial(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counted(*args: Any) -> Allocation:
        read.append(args)
        return from_params(*args)

    monkeypatch.setattr(thompson, "from_params", counted)
    table = make_table(space)
    run(space, ThompsonSampler(space, table, RUNGS, seed=0), make_loss(space, table), 12)

    assert len(read) == 11


def test_parameters_of_another_space_are_refused(space: Space) -> None:
    sampler = ThompsonSampler(space, make_table(space), RUNGS, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="`x` must be a parameter of this sampler's space"):
        study.ask().suggest_int("x", 0, 1)


def test_it_searches_where_losses_can_be_told(space: Space) -> None:
    """Below a quarter of what can be told nothing is better, so that no bytes are spent on it."""
    table = make_table(space)
    sampler = ThompsonSampler(space, table, RUNGS, seed=0)
    found = run(space, sampler, make_loss(space, table), 24)
    within = [loss for loss, _ in found if 0.2 * table.resolution < loss < 5 * table.resolution]

    assert len(within) > 18
