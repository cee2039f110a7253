"""The predicted memory of what comes before trials, against torch's own record."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alrq_core.adapters.starts import Corrections
from alrq_core.context import TrialContext
from alrq_core.memory.preparation import Stage, codes_stage, starts_stage
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun
from benchmarks.peak_memory import peak_and_rest, recorded
from search_spaces.formats import Format
from tests.tiny import make_context, save_bert, uniform

RECIPE = Recipe(max_steps=2, batch_size=8, max_length=16, cpu_dtype="float32", device="cpu")


@pytest.fixture(scope="module", params=[2, 12], ids=lambda blocks: f"{blocks} blocks")
def context(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TrialContext:
    folder = save_bert(tmp_path_factory.mktemp("m"), blocks=request.param)
    return make_context(folder, "classification", RECIPE)


def starts_peaks(context: TrialContext, checkpointing: bool) -> tuple[int, int]:
    """Return what corrections take as predicted, with all factors held, and as measured."""
    recipe = replace(context.recipe, gradient_checkpointing=checkpointing)
    context = context.trained_by(recipe)
    kind: TaskKind = context.task.kind
    allocation = uniform(context.inventory, 16, 8)
    run = TrialRun(context, allocation, seed=0)
    run.advance(2)
    fresh = replace(run.reference(), corrections=Corrections())
    del run
    longest = int(context.parts.probed.lengths.max())
    sequences = max(1, context.recipe.prepared_tokens // longest)
    sequences = min(sequences, len(context.parts.probed))
    about = (sequences, longest, torch.float32, "cpu", checkpointing)
    stage = starts_stage(context.inventory, kind, 2, allocation, *about)
    formats = {target.name: [Format(16, "plain", 0)] for target in context.inventory.targets}
    with recorded() as sizes:
        deque(context.make_corrections(fresh, formats), maxlen=0)
    return stage.work_bytes + stage.all_bytes, peak_and_rest(sizes)[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_starts_take_what_is_predicted(context: TrialContext, checkpointing: bool) -> None:
    predicted, measured = starts_peaks(context, checkpointing)
    assert predicted == pytest.approx(measured, rel=0.15)


def test_codes_take_what_is_predicted(
    context: TrialContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No earlier test has made them there.
    monkeypatch.setattr("alrq_core.context.cache_folder", lambda: tmp_path)
    context = replace(context)
    stage = codes_stage(context.inventory)
    last = context.inventory.targets[-1].name
    with recorded() as sizes:
        list(context.make_codes({last: [Format(8, "gptq", 64)]}))
    predicted = stage.work_bytes + stage.all_bytes
    assert predicted == pytest.approx(peak_and_rest(sizes)[0], rel=0.15)


def test_what_must_be_held_counts_wherever_less_was_asked_for() -> None:
    stage = Stage(work_bytes=10, least_bytes=4, all_bytes=20)

    assert [stage.bytes_with(held) for held in (0, 8, 100)] == [14, 18, 30]
    assert stage.peak_bytes == 14
