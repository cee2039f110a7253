"""One contract for every searcher, and the truth that Optuna is told."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from alrq_core.sensitivity.table import flat_table
from search_spaces.costs import memory_bytes
from search_spaces.spaces import make_space
from tests.simulated import RUNGS, bytes_help, drive, make_inventory, make_study
from tune.search.journal import STORAGE_NAME
from tune.search.proposer import Proposer
from tune.search.searchers import SEARCHERS, Setting
from tune.search.tried import Tried

INVENTORY = make_inventory()
JOINT = make_space("joint", INVENTORY)


def make_proposer(folder: Path, searcher: str, limit: int | None = None) -> Proposer:
    setting = Setting(space=JOINT, rungs=RUNGS, budget=30, seed=0, max_memory_bytes=limit)
    return Proposer(setting, searcher, folder, flat_table(JOINT))


def proposals(searcher: str, count: int) -> int:
    """Return how many are asked for: the Gaussian process takes seconds each after ten."""
    return 11 if searcher == "gp" else count


def as_trial(number: int, proposer: Proposer) -> Tried:
    allocation = proposer.propose(f"t{number:03d}")
    return Tried(
        id=f"t{number:03d}",
        allocation=allocation,
        memory_bytes=memory_bytes(allocation, INVENTORY),
    )


def complete(trial: Tried) -> Tried:
    loss = bytes_help(trial, RUNGS[-1])
    return replace(trial, ended="completed", rungs=len(RUNGS), step=RUNGS[-1], objective=loss)


def load_optuna(folder: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / STORAGE_NAME))
    return optuna.load_study(study_name="alrq", storage=optuna.storages.JournalStorage(backend))


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_proposals_are_new_and_inside_the_space(tmp_path: Path, searcher: str) -> None:
    proposer = make_proposer(tmp_path, searcher)
    seen = set()
    count = proposals(searcher, 25)
    for number in range(count):
        trial = as_trial(number, proposer)
        for name, choice in trial.allocation.choices.items():
            assert choice.bits in JOINT.bits[name]
            assert choice.rank in JOINT.ranks[name]
        seen.add(trial.allocation)
        proposer.tell(complete(trial))

    assert len(seen) == count


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_proposals_fit_into_memory(tmp_path: Path, searcher: str) -> None:
    smallest = memory_bytes(JOINT.smallest(), INVENTORY)
    limit = round(1.1 * smallest)
    proposer = make_proposer(tmp_path, searcher, limit)
    for number in range(proposals(searcher, 15)):
        trial = as_trial(number, proposer)
        assert smallest <= trial.memory_bytes <= limit
        proposer.tell(complete(trial))


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_parallel_proposals_differ(tmp_path: Path, searcher: str) -> None:
    proposer = make_proposer(tmp_path, searcher)

    assert len({as_trial(number, proposer).allocation for number in range(8)}) == 8


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_rebuilt_searcher_goes_on_as_if_never_interrupted(tmp_path: Path, searcher: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    proposer = make_proposer(tmp_path / "one", searcher)
    trials = []
    for number in range(proposals(searcher, 14)):
        trials.append(as_trial(number, proposer))
        trials[-1] = complete(trials[-1])
        proposer.tell(trials[-1])
    rebuilt = make_proposer(tmp_path / "two", searcher)
    for trial in trials:
        rebuilt.adopt(trial)
        rebuilt.tell(trial)

    assert rebuilt.propose("next") == proposer.propose("next")


@pytest.mark.parametrize("searcher", ["tpe", "nsga2", "random"])
def test_neighbouring_seeds_share_no_proposal(tmp_path: Path, searcher: str) -> None:
    proposed = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        setting = Setting(space=JOINT, rungs=RUNGS, budget=30, seed=seed)
        proposer = Proposer(setting, searcher, tmp_path / str(seed), flat_table(JOINT))
        proposed.append({as_trial(number, proposer).allocation for number in range(8)})

    assert not proposed[0] & proposed[1]


def test_optuna_is_told_the_truth_about_each_trial(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=20)
    drive(study, lambda t, s: float("nan") if t.id == "t006" else bytes_help(t, s))
    known = {trial.user_attrs["trial"]: trial for trial in load_optuna(tmp_path).trials}
    states = {"completed": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL"}

    assert len(known) == 20
    for trial in study.state.of_role("search"):
        optunas = known[trial.id]
        assert optunas.state.name == states[trial.status]
        assert optunas.user_attrs["memory_bytes"] == trial.memory_bytes
        assert optunas.user_attrs["rungs"] == len(trial.reports)
        if trial.status == "completed":
            assert optunas.values == [trial.reports[-1].loss, trial.memory_bytes / 1e6]
        else:
            assert optunas.values is None
    assert "nan" in known["t006"].user_attrs["reason"]
    assert {t.state.name for t in known.values()} == set(states.values())


def test_optunas_front_is_ours(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=20)
    drive(study)
    best = {trial.user_attrs["trial"] for trial in load_optuna(tmp_path).best_trials}

    assert best == {trial.id for trial in study.state.front()}


def test_the_smallest_limit_leaves_one_allocation(tmp_path: Path) -> None:
    limit = memory_bytes(JOINT.smallest(), INVENTORY)

    assert as_trial(0, make_proposer(tmp_path, "random", limit)).allocation == JOINT.smallest()


def test_every_modules_bits_and_rank_are_visible(tmp_path: Path) -> None:
    trial = as_trial(0, make_proposer(tmp_path, "tpe"))
    params = load_optuna(tmp_path).trials[0].params
    name = INVENTORY.names[2]

    assert params["01.attention.query.bits"] == trial.allocation.choices[name].bits
    assert params["01.attention.query.rank"] == trial.allocation.choices[name].rank
