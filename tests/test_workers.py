"""What a worker of Ray's does in its own process, without any Ray running."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from alrq_core.recipe import Recipe
from alrq_core.training import Training
from alrq_core.trial import TrialRun
from alrq_core.weights import cache
from search_spaces.formats import Format
from search_spaces.spaces import make_space
from tests.tiny import RECIPE, make_context, uniform
from tune.on_ray.files import StudyFiles
from tune.on_ray.references import References
from tune.on_ray.trial_spec import TrialSpec
from tune.on_ray.workers import BROKEN, OUTCOME, AllocationTrainable, WorkerContext
from tune.study.config import STUDY_FILE
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


def worker_with_a_trial(
    model: Path, folder: Path, recipe: Recipe = RECIPE, role: Role = "search"
) -> AllocationTrainable:
    shared = make_context(model, "classification")
    context = WorkerContext(
        inventory=shared.inventory,
        task=shared.task,
        recipe=recipe,
        folder=folder,
        space=make_space("joint", shared.inventory),
        reference=None,
        threads=1,
    )
    allocation = uniform(shared.inventory, 16, 2).encode()
    folder.mkdir(exist_ok=True)
    (folder / STUDY_FILE).touch()
    worker = AllocationTrainable.__new__(AllocationTrainable)
    worker.setup(
        TrialSpec(trial="t7", role=role, allocation=allocation, seed=0).to_config(), context
    )
    return worker


def test_a_node_that_does_not_see_the_study_says_so(bert_folder: Path, tmp_path: Path) -> None:
    worker = worker_with_a_trial(bert_folder, tmp_path)
    (tmp_path / STUDY_FILE).unlink()
    outcome = worker.step()[OUTCOME]

    assert outcome.error is not None
    assert f"the study's folder {tmp_path} is not what its driver sees" in outcome.error
    assert not list(tmp_path.iterdir())


def first_without_codes(worker: AllocationTrainable) -> tuple[Outcome, list[tuple[int, int]]]:
    """Return the first outcome of another kind, and what was told of codes before."""
    told: list[tuple[int, int]] = []
    outcome: Outcome = worker.step()[OUTCOME]
    while outcome.progress is not None and outcome.progress.work == "codes":
        told.append((outcome.progress.made, outcome.progress.wanted))
        outcome = worker.step()[OUTCOME]
    return outcome, told


def test_only_what_learnt_from_nothing_is_a_reference(bert_folder: Path, tmp_path: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 16, 2)
    references = References(StudyFiles(tmp_path), allocation)
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


def test_what_one_trial_could_not_make_codes_for_the_next_meets_too(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(weight: Tensor, stored: Format, moment: Tensor | None) -> dict[str, Tensor]:
        if stored.method == "gptq":
            raise ValueError("no such codes")
        return quantise(weight, stored, moment)

    quantise = cache.quantise
    monkeypatch.setattr("alrq_core.context.cache_folder", lambda: tmp_path / "packed")
    worker = worker_with_a_trial(bert_folder, tmp_path)
    config = worker._spec.to_config()
    with monkeypatch.context() as patched:
        patched.setattr(cache, "quantise", refuse)
        failed = [first_without_codes(worker)[0].error]
        worker.reset_config({**config, "trial": "t8"})
        failed.append(first_without_codes(worker)[0].error)
    worker.reset_config({**config, "trial": "t9"})
    mended, _ = first_without_codes(worker)

    assert failed == ["ValueError: no such codes"] * 2
    assert mended.error is None
    assert mended.report.step == 2


def test_a_reference_tells_how_far_all_is_that_follows_it(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.on_ray.workers.TELL_SECONDS", 0.0)
    monkeypatch.setattr("tune.on_ray.workers.TELL_STEPS", 1)
    monkeypatch.setattr("tune.on_ray.workers.TELL_STEPS_SECONDS", 0.0)
    worker = worker_with_a_trial(bert_folder, tmp_path, role="reference")
    outcomes = [first_without_codes(worker)[0]]
    while outcomes[-1].progress is not None:
        outcomes.append(worker.step()[OUTCOME])
    told = [outcome.progress for outcome in outcomes[:-1]]
    by_work = {
        work: [p for p in told if p.work == work] for work in ("training", "starts", "table")
    }

    assert [p.work for p in told] == [w for w, of in by_work.items() for _ in of]
    assert [(p.made, p.wanted) for p in by_work["training"]] == [
        (step, RECIPE.max_steps) for step in range(1, RECIPE.max_steps)
    ]
    assert [(p.made, p.wanted) for p in by_work["starts"]] == [(n, 12) for n in range(12)]
    # Batches, and the formats of the embedding.
    wanted = by_work["table"][0].wanted
    assert [(p.made, p.wanted) for p in by_work["table"]] == [(n, wanted) for n in range(wanted)]
    assert outcomes[-1].report.step == RECIPE.max_steps
    assert outcomes[-1].table.modules.keys() == set(worker._context.inventory.names)
    assert (tmp_path / "references/t7.safetensors").is_file()


def test_starts_are_told_of_before_the_first_one_is_made(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_with_a_trial(bert_folder, tmp_path, role="reference")
    monkeypatch.setattr("tune.on_ray.workers.TELL_SECONDS", 1000.0)
    outcomes = [first_without_codes(worker)[0]]
    while outcomes[-1].report is None or outcomes[-1].report.step < RECIPE.max_steps:
        outcomes.append(worker.step()[OUTCOME])

    told = [outcome.progress for outcome in outcomes if outcome.progress is not None]
    assert [(p.work, p.made) for p in told if p.work != "training"] == [("starts", 0)]


def test_a_trial_that_goes_on_tells_all_that_it_has_measured(
    bert_folder: Path, tmp_path: Path
) -> None:
    """Its study may have lost the last events before it was gone on with."""
    worker = worker_with_a_trial(bert_folder, tmp_path)
    measured = [
        first_without_codes(worker)[0].report,
        *(worker.step()[OUTCOME].report for _ in "1"),
    ]
    again = worker_with_a_trial(bert_folder, tmp_path)
    told = [first_without_codes(again)[0].report, *(again.step()[OUTCOME].report for _ in "1")]

    assert [report.step for report in told] == [2, 4]
    assert told == measured


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_checkpoint_is_trained_again(
    bert_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    first, _ = first_without_codes(worker_with_a_trial(bert_folder, tmp_path))
    path = tmp_path / "checkpoints/t7.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-10], "changed": content, "empty": b""}[damage])
    again, _ = first_without_codes(worker_with_a_trial(bert_folder, tmp_path))

    assert again.error is None
    assert again.report.loss == first.report.loss
    assert "t7 is trained again from its start: " in capfd.readouterr().err


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


def refuse(monkeypatch: pytest.MonkeyPatch, above: int, error: Exception) -> list[int]:
    """Let every training with micro-batches above a size fail; return the sizes that were tried."""
    tried: list[int] = []
    train_to = Training.train_to

    def train(training: Training, step: int) -> list[Tensor]:
        tried.append(training._recipe.micro_batch)
        if tried[-1] > above:
            raise error
        return train_to(training, step)

    monkeypatch.setattr(Training, "train_to", train)
    return tried


def test_out_of_memory_is_tried_again_with_smaller_micro_batches(
    bert_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    undisturbed, _ = first_without_codes(worker_with_a_trial(bert_folder, tmp_path / "a"))
    tried = refuse(monkeypatch, 4, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    worker = worker_with_a_trial(bert_folder, tmp_path / "b")
    first, _ = first_without_codes(worker)
    last = worker.step()[OUTCOME]

    assert (first.error, last.error) == (None, None)
    assert (first.report.step, last.report.step) == (2, 4)
    # The whole batch is in each optimiser step, whatever its parts are.
    assert first.report.loss == pytest.approx(undisturbed.report.loss, rel=1e-3)
    assert set(tried) == {8, 4}
    assert tried.count(8) == 1
    assert "t7: out of memory with micro-batches of 8, at a peak" in capfd.readouterr().err


def test_a_trial_that_runs_out_of_memory_twice_fails_with_its_peak(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = refuse(monkeypatch, 2, RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    worker = worker_with_a_trial(bert_folder, tmp_path)
    failed, _ = first_without_codes(worker)
    spec = TrialSpec.from_config(worker._spec.to_config() | {"trial": "t8"})
    worker.reset_config(spec.to_config())
    worker.step()

    assert failed.error is not None
    assert failed.error.startswith("out of memory with micro-batches of 4, at a peak of ")
    assert "MPS backend out of memory" in failed.error
    # The next trial has micro-batches of the plan again.
    assert tried == [8, 4, 8, 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_card_that_is_full_is_cleared_for_the_next_attempt(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_to, most = Training.train_to, 2**27

    def train(training: Training, step: int) -> list[Tensor]:
        filling = torch.empty(most, dtype=torch.uint8, device="cuda")
        if training._recipe.micro_batch > 4:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        del filling
        assert torch.cuda.memory_allocated() < most
        return train_to(training, step)

    monkeypatch.setattr(Training, "train_to", train)
    worker = worker_with_a_trial(bert_folder, tmp_path, replace(RECIPE, device="cuda"))
    first, _ = first_without_codes(worker)

    assert (first.error, first.report.step) == (None, 2)


def test_a_process_whose_device_has_failed_takes_no_other_trial(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, 0, torch.AcceleratorError("CUDA error: an illegal memory access"))
    worker = worker_with_a_trial(bert_folder, tmp_path)
    failed, _ = first_without_codes(worker)
    ended: list[int] = []

    def end(code: int) -> NoReturn:
        ended.append(code)
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit):
        worker.reset_config(worker._spec.to_config())

    assert failed.error == "the device failed: CUDA error: an illegal memory access"
    assert ended == [BROKEN]
