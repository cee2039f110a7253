"""What a worker of Ray's does in its own process, without any Ray running."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from search_spaces.spaces import make_space
from tests.tiny import RECIPE, make_context, uniform
from tune.on_ray.workers import OUTCOME, AllocationTrainable, TrialSpec, WorkerContext


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond a kilobyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_trial_goes_on_where_its_checkpoint_can_not_be_written(
    bert_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = make_context(bert_folder, "classification")
    context = WorkerContext(
        inventory=shared.inventory,
        task=shared.task,
        recipe=RECIPE,
        rungs=(2, RECIPE.max_steps),
        checkpoints=tmp_path,
        space=make_space("joint", shared.inventory),
        threads=1,
    )
    allocation = uniform(shared.inventory, 16, 2).encode()
    worker = AllocationTrainable.__new__(AllocationTrainable)
    worker.setup(
        TrialSpec(trial="t7", role="search", allocation=allocation, seed=0).to_config(), context
    )
    with full_disk():
        first = worker.step()[OUTCOME]
    last = worker.step()[OUTCOME]

    assert (first.error, first.report.step) == (None, 2)
    assert (last.error, last.report.step) == (None, RECIPE.max_steps)
    assert [path.name for path in tmp_path.iterdir()] == ["t7.pt"]
    # The process prints that into a file of Ray's; nothing half written is left.
    assert "checkpoint of t7 can't be kept" in capfd.readouterr().err
