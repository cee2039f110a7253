"""An elastic run computes what a trial of each allocation would, and shares all that it can."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from alrq_core import machine
from alrq_core.build import adapter_tensors, frozen_layer, lora_layers
from alrq_core.context import TrialContext
from alrq_core.elastic import ElasticRun
from alrq_core.encode import collate
from alrq_core.heads import head_names
from alrq_core.packed_cache import PackedCache
from alrq_core.packing import stored_tensors
from alrq_core.receipt import ReceiptError
from alrq_core.records import Recipe, TaskKind
from alrq_core.scoring import sequence_losses
from alrq_core.trial import TrainingDivergedError, TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import Format
from search_spaces.spaces import ALL_BITS, ALL_RANKS, Space, make_space
from tests.tiny import RECIPE, make_context, mixed, save_tokenizer

FLOAT32 = replace(RECIPE, cpu_dtype="float32")
FAMILIES = ("bert", "llama", "gpt2")
every_family = pytest.mark.parametrize("family", FAMILIES)
Make = Callable[..., TrialContext]


def save_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32,
        n_embd=64,
        n_layer=2,
        n_head=2,
        n_inner=128,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting all garbage takes ten times as long as a tiny trial is built in."""
    monkeypatch.setattr(machine, "give_back_memory", lambda: None)


@pytest.fixture(scope="module")
def make(bert_folder: Path, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    folders = {
        "bert": bert_folder,
        "llama": llama_folder,
        "gpt2": save_gpt2(tmp_path_factory.mktemp("gpt2")),
    }

    def context(family: str = "bert", recipe: Recipe = FLOAT32) -> TrialContext:
        kind: TaskKind = "classification" if family == "bert" else "language-modelling"
        return make_context(folders[family], kind, recipe)

    return context


def joint(context: TrialContext) -> Space:
    return make_space("joint", context.inventory)


def elastic_run(context: TrialContext, seed: int = 0) -> ElasticRun:
    return ElasticRun(context, joint(context), seed)


def allocations(space: Space) -> list[Allocation]:
    """Every format and rank of every module in turn, and a few at random.

    Each leaves something to train, without which a trial of a language model can't be built.
    """
    generator, first = Random(0), space.inventory.names[0]
    uniform = [space.nearest_uniform(b, r) for b, r in zip(ALL_BITS, ALL_RANKS[1:], strict=True)]
    return [
        *uniform,
        Allocation({**space.nearest_uniform(3, 0).choices, first: Choice(3, 2)}),
        Allocation({**space.smallest().choices, first: Choice(2, 4)}),
        mixed(space.inventory),
        *(space.draw_all(generator) for _ in range(5)),
    ]


def disturb(run: ElasticRun) -> None:
    """Make each column of each adapter matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(run.model).values():
            for tensor in adapter_tensors(layer):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def trial_of(run: ElasticRun, allocation: Allocation) -> TrialRun:
    """A trial with the first columns of the run's adapters, and its head."""
    context = run.context
    trial = TrialRun(context, allocation, seed=9)
    nested = lora_layers(run.model)
    with torch.no_grad():
        for name, layer in lora_layers(trial.model).items():
            rank = allocation.choices[name].rank
            (a, b), (all_a, all_b) = adapter_tensors(layer), adapter_tensors(nested[name])
            assert a.shape[0] == b.shape[1] == rank > 0
            a.copy_(all_a[:rank])
            b.copy_(all_b[:, :rank])
    for name in head_names(context.base, context.task.kind):
        trial.model.get_submodule(name).load_state_dict(run.model.get_submodule(name).state_dict())
    return trial


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def logits_of(model: torch.nn.Module, context: TrialContext) -> Tensor:
    task = context.task
    batch = collate(task.validation, np.arange(8), task.pad_id)
    with torch.inference_mode():
        return sequence_losses(model.eval(), batch)[1]


def backward(model: torch.nn.Module, context: TrialContext) -> None:
    task = context.task
    model.train()
    model.zero_grad(set_to_none=True)
    sequence_losses(model, collate(task.train, np.arange(8), task.pad_id))[0].mean().backward()


@pytest.mark.parametrize("execution", ["packed", "dequantized"])
@every_family
def test_computes_what_a_trial_of_each_allocation_does(
    make: Make, family: str, execution: str
) -> None:
    context = make(family, replace(FLOAT32, execution=execution))
    run = elastic_run(context)
    disturb(run)
    tried = allocations(run.space)
    losses = []
    for allocation in tried:
        trial = trial_of(run, allocation)
        found = run.score(allocation)
        expected = trial._evaluate(trial._screening)
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-6)
        assert np.array_equal(found.predictions, expected.predictions)
        torch.testing.assert_close(
            logits_of(run.model, context), logits_of(trial.model, context), rtol=1e-5, atol=1e-5
        )
        losses.append(found.loss)

    assert run.allocation == tried[-1]
    assert len(set(losses)) == len(losses)
    for target in context.inventory.targets:
        assert {a.choices[target.name].bits for a in tried} == set(ALL_BITS)
        assert {a.choices[target.name].rank for a in tried} == set(ALL_RANKS)
    for module in context.inventory.embeddings:
        assert {a.choices[module.name].bits for a in tried} == {4, 8, 16}


@every_family
def test_gradients_are_those_of_a_trial_and_reach_active_columns_alone(
    make: Make, family: str
) -> None:
    context = make(family)
    run = elastic_run(context)
    disturb(run)
    for allocation in allocations(run.space):
        trial = trial_of(run, allocation)
        run.set(allocation)
        backward(run.model, context)
        backward(trial.model, context)
        expected = lora_layers(trial.model)
        for name, layer in lora_layers(run.model).items():
            a, b = (tensor.grad for tensor in adapter_tensors(layer))
            rank = allocation.choices[name].rank
            if not rank:
                assert a is None and b is None
                continue
            assert a is not None and b is not None
            assert not a[rank:].any() and not b[:, rank:].any()
            assert a[:rank].any(dim=1).all() and b[:, :rank].any(dim=0).all()
            its = [tensor.grad for tensor in adapter_tensors(expected[name])]
            torch.testing.assert_close([a[:rank], b[:, :rank]], its, rtol=1e-4, atol=1e-7)


def test_trains_as_a_trial_where_every_draw_is_the_same(make: Make) -> None:
    """At the largest ranks, since both then have the same parameters."""
    context = make()
    space = joint(context)
    drawn = space.draw_all(Random(3))
    choices = drawn.choices.items()
    allocation = Allocation({n: replace(c, rank=space.ranks[n][-1]) for n, c in choices})
    run = ElasticRun(context, space, seed=5, draw=lambda _: allocation)
    trial = TrialRun(context, allocation, seed=5)
    for mine, its in zip(trained(run.model), trained(trial.model), strict=True):
        # Layers draw numbers when they are made, some formats' and others not.
        mine.data.copy_(its)
    for step in (4, 8):
        report = trial.advance(step)
        assert run.train(4) == pytest.approx(report.train_loss, abs=2e-6)
        tokens = context.task.validation if step == 8 else None
        assert run.score(allocation, tokens).loss == pytest.approx(report.loss, abs=2e-6)


@every_family
def test_each_format_is_packed_once_and_never_copied(
    make: Make, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make(family)
    space, packed = joint(context), Counter[tuple[int, Format]]()
    quantise = PackedCache.__call__

    def counted(
        self: PackedCache, weight: Tensor, stored: Format, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        packed[id(weight), stored] += 1
        return quantise(self, weight, stored, dtype)

    monkeypatch.setattr(PackedCache, "__call__", counted)
    run = ElasticRun(context, space, seed=0)
    ids = {name: id(context.base.get_parameter(f"{name}.weight")) for name in space.bits}
    formats = {(name, c.format) for name in space.bits for c in space.choices(name)}

    assert packed == dict.fromkeys([(ids[name], stored) for name, stored in formats], 1)

    places: dict[tuple[str, Format], set[int]] = {}
    for number, allocation in enumerate(allocations(space)):
        run.set(allocation)
        if number % 4 == 0:
            run.train(1)
            run.score(allocation)
        for name, choice in allocation.choices.items():
            codes, _, stored = stored_tensors(frozen_layer(run.model, name))
            assert stored == choice.format
            places.setdefault((name, stored), set()).add(codes.data_ptr())

    assert packed.total() == len(formats) == len(places)
    assert all(len(found) == 1 for found in places.values())

    trial = TrialRun(context, space.nearest_uniform(4, 8), seed=0)
    for name, choice in trial.allocation.choices.items():
        codes = stored_tensors(frozen_layer(trial.model, name))[0]
        assert places[name, choice.format] == {codes.data_ptr()}


def test_a_tied_head_is_swapped_with_its_embedding(make: Make) -> None:
    run = elastic_run(make("gpt2"))
    seen = set()
    for bits in (4, 8, 16):
        run.set(run.space.nearest_uniform(bits, 8))
        embedding = run.model.get_submodule("transformer.wte")
        assert run.model.get_submodule("lm_head") is embedding.packed
        seen.add(embedding.packed)

    assert len(seen) == 3


def test_a_residual_start_is_nested_where_there_is_one_format(make: Make) -> None:
    context = make("bert", replace(FLOAT32, lora_init="residual"))
    space = make_space("rank", context.inventory)
    run = ElasticRun(context, space, seed=0)
    nested = lora_layers(run.model)
    for rank in ALL_RANKS[1:]:
        trial = TrialRun(context, space.nearest_uniform(4, rank), seed=rank)
        for name, layer in lora_layers(trial.model).items():
            (a, b), (all_a, all_b) = adapter_tensors(layer), adapter_tensors(nested[name])
            assert b.any() and torch.equal(a, all_a[:rank]) and torch.equal(b, all_b[:, :rank])


def test_learns_for_all_allocations_at_once(make: Make) -> None:
    run = elastic_run(make("bert", replace(RECIPE, max_steps=80)))
    assert run.score(run.space.nearest_uniform(4, 8)).loss > 0.6
    run.train(80)
    for bits, rank in ((2, 2), (3, 32), (4, 8), (16, 4)):
        result = run.score(run.space.nearest_uniform(bits, rank))
        assert result.loss < 0.6
        assert result.accuracy is not None
        assert result.accuracy > 0.75


def test_the_same_seed_gives_the_same_losses_wherever_it_is_scored(make: Make) -> None:
    context = make()
    once, often, other = (elastic_run(context, seed) for seed in (1, 1, 2))
    scored = once.space.nearest_uniform(3, 4)
    expected = once.train(8)
    parts = []
    for _ in range(4):
        parts.append(often.train(2))
        often.score(scored)

    assert np.mean(parts) == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(often.score(scored).losses, once.score(scored).losses)
    assert other.train(8) != expected


def test_a_score_is_of_every_second_sequence_or_of_the_given_ones(make: Make) -> None:
    run = elastic_run(make())
    allocation = run.space.nearest_uniform(4, 8)

    assert len(run.score(allocation).losses) == 12
    assert len(run.score(allocation, run.context.task.test).losses) == 24


@every_family
def test_frozen_weights_stay_as_they_are(make: Make, family: str) -> None:
    context = make(family)
    run = elastic_run(context)
    base = {name: p.clone() for name, p in context.base.named_parameters()}

    def frozen() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {
            name: p for name, p in run.model.named_parameters() if not p.requires_grad
        }
        for name in run.space.inventory.names:
            _, others, _ = stored_tensors(frozen_layer(run.model, name))
            found |= {f"{name} {number}": tensor for number, tensor in enumerate(others)}
        return {name: tensor.clone() for name, tensor in found.items()}

    def all_frozen() -> list[dict[str, Tensor]]:
        found = []
        for bits in ALL_BITS:
            run.set(run.space.nearest_uniform(bits, 0))
            found.append(frozen())
        return found

    before = all_frozen()
    run.train(8)
    for kept, now in zip(before, all_frozen(), strict=True):
        assert kept.keys() == now.keys()
        assert all(torch.equal(tensor, now[name]) for name, tensor in kept.items())
    for name, parameter in context.base.named_parameters():
        assert torch.equal(parameter, base[name]), name


def test_codes_that_change_are_noticed_in_the_end(make: Make) -> None:
    run = elastic_run(make())
    name = run.space.inventory.names[1]
    run.train(7)
    run.set(run.space.nearest_uniform(2, 0))
    codes = stored_tensors(frozen_layer(run.model, name))[0]
    codes[0] ^= 1
    with pytest.raises(ReceiptError, match=f"{name} changed in training"):
        run.train(1)


def test_a_loss_that_is_not_finite_ends_the_run_at_once(make: Make) -> None:
    context = make()
    run = elastic_run(context)
    with torch.no_grad():
        run.model.get_parameter("classifier.weight").fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="training loss became nan at step 1"):
        run.train(8)


def test_refuses_what_the_space_lacks(make: Make) -> None:
    context = make()
    with pytest.raises(ValueError, match="must be a searched one for an elastic run, got B-FP"):
        ElasticRun(context, make_space("B-FP", context.inventory), seed=0)
    space = make_space("rank", context.inventory)
    run = ElasticRun(context, space, seed=0)
    allowed = space.nearest_uniform(4, 8)
    run.set(allowed)
    name = context.inventory.targets[0].name
    for choice in (Choice(2, 8), Choice(4, 3), Choice(4, 8, "fp4"), Choice(4, 64)):
        refused = Allocation({**allowed.choices, name: choice})
        with pytest.raises(ValueError, match=rf"--space rank has \(4:0, .*\), got .* for {name}"):
            run.set(refused)
        assert run.allocation == allowed
    fewer = Allocation({n: c for n, c in allowed.choices.items() if n != name})
    for refused in (fewer, Allocation({**allowed.choices, name + "x": Choice(4, 8)})):
        with pytest.raises(ValueError, match=f"another set of modules, first {name}"):
            run.score(refused)
    with pytest.raises(ValueError, match="got one of AdaLoRA's"):
        run.set(replace(allowed, final_rank=4))
    language = make("llama")
    space = joint(language)
    untrained = ElasticRun(language, space, seed=0, draw=lambda _: space.nearest_uniform(3, 0))
    with pytest.raises(ValueError, match="`draw` must leave something to train"):
        untrained.train(1)
    for steps in (0, 9):
        with pytest.raises(ValueError, match="`steps` must lie between 1 and the 8 of 8"):
            run.train(steps)
