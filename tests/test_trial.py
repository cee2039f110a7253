"""One trial: it learns, repeats itself, continues exactly, and fails with a reason."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alrq_core.adapters.lora import adapter_tensors, lora_layers
from alrq_core.recipe import EXECUTIONS, LORA_INITS
from alrq_core.records import TrialReport
from alrq_core.training import TrainingDivergedError
from alrq_core.trial import TrialRun
from alrq_core.weights.layers import multiplied_layers
from search_spaces.fixed import fixed_allocation
from tests.tiny import RECIPE, make_context, mixed, uniform


def numbers(report: TrialReport) -> tuple[float, ...]:
    return report.step, report.train_loss, report.loss, report.accuracy or 0.0


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_learns_at_every_bits(bert_folder: Path, bits: int) -> None:
    recipe = replace(RECIPE, max_steps=60)
    context = make_context(bert_folder, "classification", recipe)
    run = TrialRun(context, uniform(context.inventory, bits, 4), seed=0)
    first, last = run.advance(2), run.advance(60)

    assert last.loss < 0.6 < first.loss
    assert last.accuracy is not None
    assert last.accuracy > 0.75
    assert last.f1 is not None
    assert last.perplexity is None
    assert last.context_tokens is None
    assert {"context_tokens", "stride_tokens"}.isdisjoint(last.to_json())


def test_half_the_split_is_scored_below_full_fidelity(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    run = TrialRun(context, uniform(context.inventory, 4, 4), seed=0)
    reports = [run.advance(step) for step in (2, 8)]

    assert [report.sequences for report in reports] == [12, 24]


def test_language_model_reports_perplexity(llama_folder: Path) -> None:
    context = make_context(llama_folder, "language-modelling")
    run = TrialRun(context, uniform(context.inventory, 4, 4), seed=0)
    report = run.advance(8)
    score = run.test()

    assert report.accuracy is None
    assert report.perplexity == pytest.approx(2.718281828**report.loss, rel=1e-4)
    assert (report.context_tokens, report.stride_tokens) == (12, 12)
    assert score.metric == "perplexity"
    assert (score.context_tokens, score.stride_tokens) == (12, 12)
    assert len(score.scores) == len(context.task.test)


def test_same_seed_same_numbers_in_the_same_process(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 3, 4)
    runs = [TrialRun(context, allocation, seed=5) for _ in range(2)]
    first, second = ([numbers(run.advance(step)) for step in (2, 4, 8)] for run in runs)

    assert first == second


def test_a_dequantised_copy_trains_to_the_same_digits(bert_folder: Path) -> None:
    """And its receipt is that of the packed weights, which are read again in the end."""
    runs = []
    for execution in EXECUTIONS:
        recipe = replace(RECIPE, execution=execution)
        context = make_context(bert_folder, "classification", recipe)
        run = TrialRun(context, mixed(context.inventory), seed=0)
        runs.append((numbers(run.advance(8)), run.receipt, run))
    packed, copied = runs

    assert packed[:2] == copied[:2]
    assert all(layer.kept is None for layer in multiplied_layers(packed[2].model))
    assert all(layer.kept is not None for layer in multiplied_layers(copied[2].model))
    confirmed = TrialRun(copied[2].context, copied[2].allocation, seed=0, confirming=True)
    assert all(layer.kept is None for layer in multiplied_layers(confirmed.model))


@pytest.mark.parametrize("lora_init", LORA_INITS)
def test_adapters_start_where_the_recipe_says(bert_folder: Path, lora_init: str) -> None:
    recipe = replace(RECIPE, lora_init=lora_init)
    context = make_context(bert_folder, "classification", recipe)
    run = TrialRun(context, uniform(context.inventory, 2, 4), seed=0)
    halves = [adapter_tensors(layer) for layer in lora_layers(run.model).values()]
    rows = [torch.nn.functional.normalize(a) for a, _ in halves]
    grams = [a @ a.T for a in rows]

    assert all(bool(b.count_nonzero()) == (lora_init == "residual") for _, b in halves)
    orthonormal = all(torch.allclose(g, torch.eye(4).to(g), atol=1e-4) for g in grams)
    assert orthonormal == (lora_init == "eva")
    assert run.advance(8).loss > 0
    assert run.receipt.unchanged_after_training is True


def test_seeds_differ(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 3, 4)
    first, second = (TrialRun(context, allocation, seed).advance(4) for seed in (1, 2))

    assert first.loss != second.loss


def test_where_it_reports_does_not_change_training(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 4, 4)
    often = TrialRun(context, allocation, seed=0)
    for step in (1, 2, 5):
        often.advance(step)
    once = TrialRun(context, allocation, seed=0)

    assert often.advance(8).loss == once.advance(8).loss


def test_a_checkpoint_continues_exactly(bert_folder: Path, tmp_path: Path) -> None:
    context = make_context(bert_folder, "classification")
    allocation = uniform(context.inventory, 2, 4)
    whole = TrialRun(context, allocation, seed=3)
    report = whole.advance(4)
    whole.save_checkpoint(tmp_path / "t.pt")
    expected = whole.advance(8)
    torch.manual_seed(99)
    resumed = TrialRun(context, allocation, seed=3)

    resumed.load_checkpoint(tmp_path / "t.pt")
    assert resumed.reports[-1] == report
    assert resumed.step == 4
    assert numbers(resumed.advance(8)) == numbers(expected)
    assert resumed.receipt == whole.receipt
    assert [path.name for path in tmp_path.iterdir()] == ["t.pt"]


def test_accumulation_keeps_the_effective_batch(bert_folder: Path) -> None:
    """Without dropout, since it draws for each micro-batch."""
    losses = []
    for parts in (1, 4):
        recipe = replace(RECIPE, accumulation_steps=parts)
        context = make_context(bert_folder, "classification", recipe)
        for module in context.base.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run = TrialRun(context, uniform(context.inventory, 16, 4), seed=0)
        losses.append(run.advance(4).train_loss)

    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_rank_zero_trains_the_head_alone(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    run = TrialRun(context, uniform(context.inventory, 4, 0), seed=0)
    run.advance(2)

    assert run.receipt.lora_pairs == 0
    assert run.receipt.trainable_parameters == 64 * 2 + 2


def test_the_base_model_is_never_changed(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    before = {name: p.clone() for name, p in context.base.named_parameters()}
    TrialRun(context, uniform(context.inventory, 8, 4), seed=0).advance(2)

    for name, parameter in context.base.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_loss_that_is_not_finite_ends_the_trial_at_once(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    run = TrialRun(context, uniform(context.inventory, 16, 4), seed=0)
    with torch.no_grad():
        run.training.trained[0].fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="training loss became nan at step 1"):
        run.advance(8)


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    recipe = replace(RECIPE, max_steps=100, warmup_fraction=0.1)
    factors = [recipe.learning_rate_factor(step) for step in range(101)]

    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == 0.0


@pytest.mark.parametrize("name", ["uniform", "B-Ada"])
def test_float16_trains_as_float32_does(bert_folder: Path, name: str) -> None:
    losses = []
    for dtype in ("float32", "float16"):
        recipe = replace(RECIPE, device="cpu", cpu_dtype=dtype)
        context = make_context(bert_folder, "classification", recipe)
        allocation = (
            uniform(context.inventory, 4, 4)
            if name == "uniform"
            else fixed_allocation(name, context.inventory)
        )
        run = TrialRun(context, allocation, seed=0)
        losses.append(run.advance(recipe.max_steps).loss)

    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]


def test_a_step_that_overflows_is_left_out(bert_folder: Path) -> None:
    recipe = replace(RECIPE, device="cpu", cpu_dtype="float16")
    context = make_context(bert_folder, "classification", recipe)
    run = TrialRun(context, uniform(context.inventory, 4, 4), seed=0)
    run.advance(1)
    training = run.training
    before = [parameter.detach().clone() for parameter in training.trained]
    training._scaler.load_state_dict(training._scaler.state_dict() | {"scale": 2.0**40})
    training.train_step()
    same = all(map(torch.equal, before, training.trained))
    training._scaler.load_state_dict(training._scaler.state_dict() | {"scale": 2.0**13})
    training.train_step()

    assert same
    assert not any(map(torch.equal, before, training.trained))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trains_on_a_gpu(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    for bits in (16, 8, 4, 3, 2):
        run = TrialRun(context, uniform(context.inventory, bits, 4), seed=0)
        assert run.advance(8).loss > 0


def test_a_seed_starts_every_allocation_alike(bert_folder: Path) -> None:
    """Heads are the same, and adapters as far as both have them."""
    context = make_context(bert_folder, "classification")
    inventory = context.inventory
    one, two = (
        TrialRun(context, allocation, seed=3)
        for allocation in (uniform(inventory, 4, 2), mixed(inventory))
    )
    both = lora_layers(one.model).keys() & lora_layers(two.model).keys()
    assert both
    for name in both:
        first, second = (adapter_tensors(lora_layers(r.model)[name])[0] for r in (one, two))
        rank = min(len(first), len(second))
        assert torch.equal(first[:rank], second[:rank])
        assert first.std() > 0
    assert torch.equal(one.model.classifier.weight, two.model.classifier.weight)
    other = TrialRun(context, uniform(inventory, 4, 2), seed=4)
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)


def test_a_language_model_without_adapters_is_scored_as_it_is(
    llama_folder: Path, tmp_path: Path
) -> None:
    context = make_context(llama_folder, "language-modelling")
    run = TrialRun(context, uniform(context.inventory, 4, 0), seed=0)
    first = run.advance(2)
    run.save_checkpoint(tmp_path / "c.pt")
    again = TrialRun(context, uniform(context.inventory, 4, 0), seed=0)
    again.load_checkpoint(tmp_path / "c.pt")
    assert again.reports[-1] == first
    last = again.advance(8)

    assert last.step == 8
    assert last.train_loss > 0
    assert again.receipt.lora_pairs == 0
    assert again.test().value == pytest.approx(last.perplexity, rel=0.1)
