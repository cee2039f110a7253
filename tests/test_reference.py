"""Trials that start where a reference ended: exact where they can be, and never made worse."""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext
from alrq_core.data.encode import collate
from alrq_core.kept import Kept
from alrq_core.recipe import Recipe
from alrq_core.training import REACH
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from tests.simulated import make_report
from tests.tiny import make_context, mixed, uniform

RECIPE = Recipe(
    max_steps=16,
    batch_size=8,
    learning_rate=1e-2,
    tune_steps=4,
    tune_learning_rate=5e-4,
    device="cpu",
    cpu_dtype="float32",
)
SEED = 3


class Setting:
    """A tiny model, and the reference of a seed."""

    def __init__(self, context: TrialContext) -> None:
        self.context = context
        run = TrialRun(context, uniform(context.inventory, 16, 4), SEED)
        run.advance(16)
        self.reference = run.reference()
        self.logits = self.answer(run)

    def answer(self, run: TrialRun) -> Tensor:
        task = self.context.task
        batch = collate(task.test, np.arange(8), task.pad_id)
        with torch.no_grad():
            logits: Tensor = run.model.eval()(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).logits
        return logits

    def with_recipe(self, recipe: Recipe) -> "Setting":
        """Return the same reference where trials are trained otherwise."""
        other = copy(self)
        other.context = replace(self.context, recipe=recipe)
        return other

    def start(self, allocation: Allocation) -> TrialRun:
        return TrialRun(self.context, allocation, SEED, reference=self.reference)


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Setting:
    return Setting(make_context(bert_folder, "classification", RECIPE))


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Setting:
    return Setting(make_context(llama_folder, "language-modelling", RECIPE))


@pytest.fixture(params=["bert", "llama"])
def setting(request: pytest.FixtureRequest) -> Setting:
    chosen: Setting = request.getfixturevalue(request.param)
    return chosen


def test_a_start_without_any_divergence_has_gradients_to_show(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towards answers that are its own nothing is to be learnt, which is no dead adapter."""

    def none(logits: Tensor, *_: object) -> Tensor:
        return 0.0 * logits.flatten(1).sum(dim=1)

    monkeypatch.setattr("alrq_core.training.divergences", none)
    run = setting.start(uniform(setting.context.inventory, 16, 4))
    report = run.advance(4)

    assert report.train_loss == 0.0
    assert run.receipt.lora_pairs_with_gradient == run.receipt.lora_pairs > 0


@pytest.mark.parametrize("rank", [4, 8])
def test_sixteen_bits_with_its_rank_are_the_reference_itself(setting: Setting, rank: int) -> None:
    run = setting.start(uniform(setting.context.inventory, 16, rank))

    assert torch.equal(setting.answer(run), setting.logits)
    report = run.advance(0)
    assert report.divergence == pytest.approx(0.0, abs=1e-6)
    assert report.step == 0


@pytest.mark.parametrize("bits", [2, 4])
def test_at_full_rank_the_logits_come_back(setting: Setting, bits: int) -> None:
    """All modules have 64 features on one side; embeddings, which have no adapter, in 16 bits."""
    inventory = setting.context.inventory
    choices = {
        module.name: Choice(16, 0) if module.part == "embedding" else Choice(bits, 64)
        for module in inventory.modules
    }
    found = setting.answer(setting.start(Allocation(choices)))

    torch.testing.assert_close(found, setting.logits, rtol=2e-2, atol=2e-2)


def test_a_start_is_nearer_than_one_that_knows_the_base_alone(setting: Setting) -> None:
    allocation = uniform(setting.context.inventory, 3, 8)
    near = setting.start(allocation).advance(0).divergence
    context = replace(setting.context, recipe=replace(RECIPE, lora_init="residual"))
    base = TrialRun(context, allocation, SEED)
    answers = setting.reference.answers["scored"]
    far = base._scorer.evaluate(context.parts.scored, answers).divergences

    assert near is not None
    assert far is not None
    assert near < 0.5 * far.mean()


def test_training_towards_the_reference_brings_nearer(llama: Setting) -> None:
    context = replace(llama.context, recipe=replace(RECIPE, tune_steps=12))
    reference = TrialRun(context, uniform(context.inventory, 16, 4), SEED)
    reference.advance(16)
    allocation = uniform(context.inventory, 2, 2)
    run = TrialRun(context, allocation, SEED, reference=reference.reference())
    start = run.advance(0)
    end = run.advance(12)

    assert start.divergence is not None
    assert end.divergence is not None
    assert end.divergence < 0.9 * start.divergence
    assert end.kept_step == 12
    assert run.receipt.unchanged_after_training


@pytest.mark.parametrize(
    ("rise", "beaten"),
    [(0.5, False), (-0.5, False), (0.0, False), (1.9, False), (2.1, True), (9.0, True)],
)
def test_a_state_is_kept_if_a_later_one_is_shown_to_be_worse(rise: float, beaten: bool) -> None:
    """Differences have a mean of 0 and an error of 1, and then rise."""
    before = torch.linspace(0.1, 3.0, 25, dtype=torch.float64)
    apart = np.random.default_rng(0).normal(size=25)
    apart = 5 * (apart - apart.mean()) / apart.std(ddof=1)

    assert Kept(make_report(0, 0.5), [], before).beats(before.numpy() + apart + rise) == beaten


def test_a_ruined_state_is_not_kept(bert: Setting) -> None:
    """At a rate that ruins the adapters, the start stays."""
    ruinous = bert.with_recipe(replace(RECIPE, tune_learning_rate=0.9))
    run = ruinous.start(uniform(bert.context.inventory, 4, 4))
    start = run.advance(0)
    answer = bert.answer(run)
    end = run.advance(4)

    assert (end.kept_step, end.step) == (0, 4)
    assert (end.loss, end.divergence) == (start.loss, start.divergence)
    assert torch.equal(bert.answer(run), answer)


def test_no_step_goes_beyond_a_start_s_way(bert: Setting) -> None:
    """The rate is at most the first losses over the sum of all slopes, in each direction."""
    recipe = replace(RECIPE, tune_learning_rate=None, warmup_fraction=0.01)
    setting = bert.with_recipe(recipe)
    allocation = uniform(bert.context.inventory, 4, 4)
    near, far, other = (setting.start(allocation).training for _ in range(3))
    loss = other.mean_loss(next(other._batches))
    slopes = [slope.abs().sum() for slope in torch.autograd.grad(loss, other.trained)]
    near.train_step()
    way = loss.item() / float(torch.stack(slopes).sum())
    far._first = [torch.tensor([1e4, 1.0])]
    far.train_step()

    rate = recipe.tuning.learning_rate
    assert way < rate / 2
    used = [float(t._optimizer.param_groups[0]["lr"]) for t in (near, far)]
    assert used == pytest.approx([REACH * way, rate], rel=1e-4)


@pytest.mark.parametrize("rate", [5e-4, None])
@pytest.mark.parametrize("stop", [0, 2, 4])
def test_a_trial_goes_on_from_its_checkpoint(
    setting: Setting, tmp_path: Path, stop: int, rate: float | None
) -> None:
    recipe = replace(RECIPE, tune_learning_rate=rate, warmup_fraction=0.9)
    setting = setting.with_recipe(recipe)
    allocation = mixed(setting.context.inventory)
    rungs = (0, 2, 4)
    straight = setting.start(allocation)
    reports = [straight.advance(rung) for rung in rungs]
    first = setting.start(allocation)
    for rung in rungs[: rungs.index(stop) + 1]:
        report = first.advance(rung)
    first.save_checkpoint(tmp_path / "c")
    second = setting.start(allocation)
    second.load_checkpoint(tmp_path / "c")
    assert second.reports[-1] == report
    for rung in rungs[rungs.index(stop) + 1 :]:
        report = second.advance(rung)

    def timeless(report: object) -> object:
        return replace(report, train_seconds=0, eval_seconds=0, peak_memory_bytes=0)  # type: ignore

    assert timeless(report) == timeless(reports[-1])
    assert torch.equal(setting.answer(second), setting.answer(straight))


def test_trials_leave_no_trace_in_later_starts(setting: Setting) -> None:
    inventory = setting.context.inventory
    first = setting.start(mixed(inventory)).advance(0)
    trained = setting.start(uniform(inventory, 2, 8))
    trained.advance(4)
    again = setting.start(mixed(inventory)).advance(0)

    assert (again.loss, again.divergence) == (first.loss, first.divergence)


def test_corrections_are_computed_once_for_all_that_read_the_reference(
    setting: Setting, tmp_path: Path
) -> None:
    path = tmp_path / "seed-3.safetensors"
    setting.reference.save(path)
    allocation = uniform(setting.context.inventory, 2, 4)
    answers = []
    for made in (len(setting.context.inventory.targets), 0):
        read = Reference.load(path, setting.context.inventory.names)
        run = TrialRun(setting.context, allocation, SEED, reference=read)
        answers.append(setting.answer(run))
        assert read.corrections.made == made

    assert torch.equal(*answers)
    assert read.checksum == setting.reference.checksum
    assert read.seed == SEED
    assert torch.equal(answers[0], setting.answer(setting.start(allocation)))


@pytest.mark.parametrize("damage", ["absent", "cut", "changed", "foreign"])
def test_a_damaged_file_is_refused(bert: Setting, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "reference.safetensors"
    bert.reference.save(path)
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_text("nothing of ours")
    with pytest.raises(ValueError, match=r"must be the reference of a seed.*Remove it"):
        Reference.load(path, bert.context.inventory.names)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (100, 1e-3)),
        ({"tune_steps": 50}, (50, 5e-4)),
        ({"tune_steps": 400}, (400, 1e-3)),
        ({"tune_steps": 50, "tune_learning_rate": 2e-3}, (50, 2e-3)),
    ],
)
def test_fewer_steps_are_smaller_ones(given: dict[str, Any], expected: tuple[int, float]) -> None:
    tuning = Recipe(max_steps=200, **given).tuning

    assert (tuning.max_steps, tuning.learning_rate) == pytest.approx(expected)


def test_adalora_starts_from_nothing(bert: Setting) -> None:
    choices = dict(uniform(bert.context.inventory, 16, 4).choices)
    with pytest.raises(ValueError, match="AdaLoRA"):
        bert.start(Allocation(choices, final_rank=2))
