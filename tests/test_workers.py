"""What a worker of Ray's does in its own process, without any Ray running."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alrq_core.trial import TrialRun
from search_spaces.spaces import make_space
from tests.tiny import RECIPE, make_context, uniform
from tune.on_ray.references import References
from tune.on_ray.workers import OUTCOME, AllocationTrainable, TrialSpec, WorkerContext
from tune.study.events import Role
from tune.study.study import Outcome


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond a kilobyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def worker_with_a_trial(model: Path, folder: Path) -> AllocationTrainable:
    shared = make_context(model, "classification")
    context = WorkerContext(
        inventory=shared.inventory,
        task=shared.task,
        recipe=RECIPE,
        folder=folder,
        space=make_space("joint", shared.inventory),
        reference=None,
        threads=1,
    )
    allocation = uniform(shared.inventory, 16, 2).encode()
    worker = AllocationTrainable.__new__(AllocationTrainable)
    worker.setup(
        TrialSpec(trial="t7", role="search", allocation=allocation, seed=0).to_config(), context
    )
    return worker


def first_without_codes(worker: AllocationTrainable) -> tuple[Outcome, list[tuple[int, int]]]:
    """Return the first outcome of another kind, and what was told of codes before."""
    told: list[tuple[int, int]] = []
    while (outcome := worker.step()[OUTCOME]).codes is not None:
        told.append(outcome.codes)
    return outcome, told


def test_only_what_learnt_from_nothing_is_a_reference(bert_folder: Path, tmp_path: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 16, 2)
    references = References(tmp_path, allocation)
    run = TrialRun(context, allocation, 0)
    run.advance(RECIPE.max_steps)
    started = TrialRun(context, allocation, 0, reference=run.reference())
    other = TrialRun(context, uniform(context.inventory, 4, 2), 0)
    roles: tuple[Role, ...] = ("reference", "baseline", "confirm", "control")

    assert [references.is_one(role, run) for role in roles] == [True, True, True, False]
    assert not any(references.is_one(role, started) for role in roles)
    assert [references.is_one(role, other) for role in roles] == [True, False, False, False]


def test_a_worker_tells_how_far_its_codes_are(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alrq_core.context.cache_folder", lambda: tmp_path / "packed")
    monkeypatch.setattr("tune.on_ray.workers.TELL_SECONDS", 0.0)
    first, told = first_without_codes(worker_with_a_trial(bert_folder, tmp_path))
    again, nothing = first_without_codes(worker_with_a_trial(bert_folder, tmp_path))

    modules = 13
    assert told == [(made, 4 * modules) for made in range(4 * modules)]
    assert nothing == []
    assert [first.report.step, again.report.step] == [2, 2]
    assert first.report.loss == again.report.loss


def test_a_trial_goes_on_where_its_checkpoint_can_not_be_written(
    bert_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = worker_with_a_trial(bert_folder, tmp_path)
    with full_disk():
        first, _ = first_without_codes(worker)
    last = worker.step()[OUTCOME]

    assert (first.error, first.report.step) == (None, 2)
    assert (last.error, last.report.step) == (None, 4)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["t7.pt"]
    # The process prints that into a file of Ray's; nothing half written is left.
    assert "checkpoint of t7 can't be kept" in capfd.readouterr().err
