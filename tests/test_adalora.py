"""AdaLoRA: PEFT's layers and allocator reach the budget, and end as the same function in LoRA."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor, nn

from alrq_core.adapters.adalora import AdaptiveRanks
from alrq_core.adapters.final_ranks import RankBudgetError, attach_plain, rebuild
from alrq_core.adapters.lora import ADAPTER, frozen_layer, lora_layers
from alrq_core.build import build_model
from alrq_core.records import TaskKind
from search_spaces.allocation import Allocation, Choice
from tests.tiny import make_context

CPU = torch.device("cpu")
STEPS = 10
# Of the last phase with 10 steps.
FINAL = 3
ALPHA = 2.0
CLASSES = {
    "plain": "SVDLinear",
    "int8": "SVDLinear8bitLt",
    "nf4": "SVDLinear4bit",
    "gptq": "SVDLinear",
}
PLAIN, INT8, NF4 = Choice(16, 0), Choice(8, 0, "int8"), Choice(4, 0, "nf4")
EACH = (PLAIN, INT8, NF4)
GPTQ = tuple(Choice(bits, 0, "gptq") for bits in (8, 4, 3, 2))
OF = {"plain": PLAIN, "int8": INT8, "nf4": NF4, "gptq": GPTQ[1]}


def packed(
    folder: Path, kind: TaskKind, stored: Iterable[Choice], dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a model without adapters, its targets in turn with each of these formats."""
    context = make_context(folder, kind)
    names = tuple(target.name for target in context.inventory.targets)
    cycle = tuple(stored)
    choices = {name: cycle[i % len(cycle)] for i, name in enumerate(names)}
    head = ("classifier",) if kind == "classification" else ()
    torch.manual_seed(0)
    return build_model(context.base, Allocation(choices), head, ALPHA, dtype, CPU), names


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained(model), lr=1e-2)


def make_batch(model: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 16, (8, 10), generator=generator)
    classification = hasattr(model, "classifier")
    labels = torch.randint(0, 2, (8,), generator=generator) if classification else ids
    return {"input_ids": ids, "labels": labels}


def train_step(
    model: nn.Module, adaptive: AdaptiveRanks, optimizer: torch.optim.Optimizer, step: int
) -> None:
    torch.manual_seed(step)
    loss = model.train()(**make_batch(model, step)).loss
    (loss + adaptive.regularisation()).backward()
    optimizer.step()
    adaptive.allocate(step)
    optimizer.zero_grad()


def train(model: nn.Module, adaptive: AdaptiveRanks, steps: int = STEPS) -> list[int]:
    """Return the sum of all ranks after each step."""
    optimizer = make_optimizer(model)
    sums = []
    for step in range(1, steps + 1):
        train_step(model, adaptive, optimizer, step)
        sums.append(sum(adaptive.ranks().values()))
    return sums


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(**make_batch(model, 0)).logits
    return output


class Blocks(nn.Module):
    """Linear layers whose names are parts of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
        self.outer = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(8, 8) for _ in range(2))})
        self.requires_grad_(False)


def pretend_step(adaptive: AdaptiveRanks, step: int) -> None:
    """Allocate as if the optimiser had moved everything, the masked ranks too."""
    generator = torch.Generator().manual_seed(step)
    for layer in adaptive.layers.values():
        for part in (layer.lora_A, layer.lora_E, layer.lora_B):
            parameter = part[ADAPTER]
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.1
            parameter.grad = torch.rand(parameter.shape, generator=generator)
    adaptive.allocate(step)


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
@pytest.mark.parametrize("stored", [(PLAIN,), (INT8,), (NF4,), EACH, GPTQ])
def test_the_budget_is_met_and_the_function_stays(
    bert_folder: Path, llama_folder: Path, kind: TaskKind, stored: tuple[Choice, ...]
) -> None:
    model, names = packed(bert_folder if kind == "classification" else llama_folder, kind, stored)
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    classes = [type(layer).__name__ for layer in adaptive.layers.values()]
    assert classes == [CLASSES[stored[i % len(stored)].method] for i in range(len(names))]

    sums = train(model, adaptive)
    assert sums[0] == 6 * len(names)
    assert sums == sorted(sums, reverse=True)
    assert sums[-FINAL - 1 :] == [adaptive.budget] * (FINAL + 1) == [2 * len(names)] * (FINAL + 1)

    before, parameters = logits(model), sum(p.numel() for p in trained(model))
    ranks = rebuild(adaptive)
    after = logits(model)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    assert sum(ranks.values()) == 2 * len(names)
    assert len(set(ranks.values())) > 1
    assert sum(p.numel() for p in trained(model)) < parameters
    layers = lora_layers(model)
    assert {n: layer.lora_A[ADAPTER].weight.shape[0] for n, layer in layers.items()} == {
        name: rank for name, rank in ranks.items() if rank
    }
    assert {layer.scaling[ADAPTER] for layer in layers.values()} == {ALPHA}
    assert not any(isinstance(module, AdaLoraLayer) for module in model.modules())


@pytest.mark.parametrize("method", sorted(CLASSES))
def test_it_trains_in_bfloat16(bert_folder: Path, method: str) -> None:
    model, names = packed(bert_folder, "classification", (OF[method],), torch.bfloat16)
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    with torch.autocast("cpu", torch.bfloat16):
        sums = train(model, adaptive)
        before = logits(model)
        rebuild(adaptive)
        after = logits(model)

    assert sums[-1] == adaptive.budget
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("method", sorted(CLASSES))
def test_gradients_reach_all_three_factors_after_a_step(
    bert_folder: Path, method: str, autocast: bool
) -> None:
    model, names = packed(bert_folder, "classification", (OF[method],))
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 3), 1, STEPS, ALPHA)
    optimizer = make_optimizer(model)
    train_step(model, adaptive, optimizer, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**make_batch(model, 2)).loss.backward()

    for name, layer in adaptive.layers.items():
        for part in (layer.lora_A, layer.lora_E, layer.lora_B):
            gradient = part[ADAPTER].grad
            assert gradient is not None and gradient.count_nonzero() and gradient.isfinite().all()
        assert layer.ranknum[ADAPTER].item() == 3, name
        assert not layer.ranknum[ADAPTER].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_adapters_and_the_head_are_trained(bert_folder: Path, dtype: torch.dtype) -> None:
    model, names = packed(bert_folder, "classification", EACH, dtype)
    head = {"classifier.weight", "classifier.bias"}

    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    factors = {f"{n}.lora_{factor}.{ADAPTER}" for n in names for factor in "AEB"}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == factors | head
    assert {parameter.dtype for parameter in trained(model)} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        train(model, adaptive)
    ranks = rebuild(adaptive)
    halves = {f"{n}.lora_{half}.{ADAPTER}.weight" for n in names if ranks[n] for half in "AB"}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == halves | head


def test_modules_of_rank_0_lose_their_adapter(bert_folder: Path) -> None:
    model, names = packed(bert_folder, "classification", EACH)
    bases = {name: model.get_submodule(name) for name in names}
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    train(model, adaptive)
    nn.init.zeros_(adaptive.layers[names[0]].lora_E[ADAPTER])
    ranks = rebuild(adaptive)

    assert ranks[names[0]] == 0
    assert model.get_submodule(names[0]) is bases[names[0]]
    assert all(frozen_layer(model, name) is base for name, base in bases.items())
    assert not any(base._forward_hooks for base in bases.values())


def test_all_adapters_may_go() -> None:
    model = Blocks()
    adaptive = AdaptiveRanks(model, {"layer.0": 2, "layer.1": 2}, 1, 5, ALPHA)
    for step in range(1, 6):
        pretend_step(adaptive, step)
    for layer in adaptive.layers.values():
        nn.init.zeros_(layer.lora_E[ADAPTER])

    assert rebuild(adaptive) == {"layer.0": 0, "layer.1": 0}
    assert not lora_layers(model)


def test_finished_adapters_are_loaded_into_plain_lora(bert_folder: Path) -> None:
    model, names = packed(bert_folder, "classification", EACH)
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    train(model, adaptive)
    ranks = rebuild(adaptive)

    copy, _ = packed(bert_folder, "classification", EACH)
    attach_plain(AdaptiveRanks(copy, dict.fromkeys(names, 6), 2, STEPS, ALPHA), ranks)
    for target, source in zip(trained(copy), trained(model), strict=True):
        target.data.copy_(source)
    assert torch.equal(logits(copy), logits(model))


def test_without_allocation_nothing_is_rebuilt(bert_folder: Path) -> None:
    model, names = packed(bert_folder, "classification", (PLAIN,))
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    optimizer = make_optimizer(model)
    for step in range(STEPS):
        (model(**make_batch(model, step)).loss + adaptive.regularisation()).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert sum(adaptive.ranks().values()) == 6 * len(names)
    with pytest.raises(RankBudgetError, match="allocated at 0 of 10 steps"):
        rebuild(adaptive)
    assert set(lora_layers(model)) == set(names)


def test_a_missing_last_call_is_found() -> None:
    adaptive = AdaptiveRanks(Blocks(), {"layer.0": 4, "layer.1": 4}, 2, STEPS, ALPHA)
    for step in range(1, STEPS):
        pretend_step(adaptive, step)

    with pytest.raises(RankBudgetError, match="allocated at 9 of 10 steps"):
        rebuild(adaptive)


def test_ranks_above_the_budget_are_found() -> None:
    adaptive = AdaptiveRanks(Blocks(), {"layer.0": 4, "layer.1": 4}, 2, STEPS, ALPHA)
    for step in range(1, STEPS + 1):
        pretend_step(adaptive, step)
    nn.init.ones_(adaptive.layers["layer.0"].lora_E[ADAPTER])
    nn.init.ones_(adaptive.layers["layer.1"].lora_E[ADAPTER])

    with pytest.raises(RankBudgetError, match=r"8 ranks over 2 modules, above the budget of 4\."):
        rebuild(adaptive)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_step_left_out_or_repeated_is_refused(step: int) -> None:
    adaptive = AdaptiveRanks(Blocks(), {"layer.0": 4, "layer.1": 4}, 2, STEPS, ALPHA)
    pretend_step(adaptive, 1)

    with pytest.raises(ValueError, match=rf"`step` must be 2, .* got {step}\."):
        adaptive.allocate(step)


@pytest.mark.parametrize("max_steps", [*range(5, 31), 99, 100, 101, 250])
def test_the_schedule_meets_the_budget_for_any_number_of_steps(max_steps: int) -> None:
    initial = {"layer.0": 3, "layer.1": 8, "layer.11": 5}
    adaptive = AdaptiveRanks(Blocks(), initial, 2, max_steps, ALPHA)
    sums = []
    for step in range(1, max_steps + 1):
        pretend_step(adaptive, step)
        sums.append(sum(adaptive.ranks().values()))

    last = 3 * max_steps // 10
    assert sums[0] == 16
    assert sums[-last - 1 :] == [6] * (last + 1)


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_equal_scores_stay_within_the_budget(distinct: int) -> None:
    adaptive = AdaptiveRanks(Blocks(), {"layer.0": 6, "layer.1": 6}, 3, STEPS, ALPHA)
    for step in range(1, STEPS + 1):
        for layer in adaptive.layers.values():
            scores = (torch.arange(6) % distinct + 1.0)[:, None]
            for part, value in ((layer.lora_A, 1), (layer.lora_E, scores), (layer.lora_B, 1)):
                part[ADAPTER].data = torch.ones(part[ADAPTER].shape) * value
                part[ADAPTER].grad = torch.ones(part[ADAPTER].shape)
        adaptive.allocate(step)

    assert sum(adaptive.ranks().values()) <= adaptive.budget


@pytest.mark.parametrize("saved", [0, 1, 5, 7, 9])
def test_training_continues_from_a_saved_state_as_if_uninterrupted(
    bert_folder: Path, saved: int
) -> None:
    results: list[tuple[dict[str, int], list[Tensor]]] = []
    for interrupted in (False, True):
        model, names = packed(bert_folder, "classification", EACH)
        adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
        optimizer = make_optimizer(model)
        for step in range(1, STEPS + 1):
            if interrupted and step == saved + 1:
                state = {
                    "parameters": trained(model),
                    "optimizer": optimizer.state_dict(),
                    "ranks": adaptive.state(),
                }
                model, adaptive, optimizer = restored(bert_folder, written_and_read(state))
            train_step(model, adaptive, optimizer, step)
        ranks = rebuild(adaptive)
        results.append((ranks, [parameter.detach() for parameter in trained(model)]))

    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def written_and_read(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read: dict[str, Any] = torch.load(file, weights_only=True)
    return read


def restored(
    folder: Path, state: dict[str, Any]
) -> tuple[nn.Module, AdaptiveRanks, torch.optim.Optimizer]:
    model, names = packed(folder, "classification", EACH)
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    optimizer = make_optimizer(model)
    for parameter, value in zip(trained(model), state["parameters"], strict=True):
        parameter.data.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    adaptive.load_state(state["ranks"])
    return model, adaptive, optimizer


def test_the_regularisation_is_pefts(bert_folder: Path) -> None:
    model, names = packed(bert_folder, "classification", EACH)
    adaptive = AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    batch = make_batch(model.eval(), 0)
    with torch.no_grad():
        added = adaptive._tuner(**batch).loss - model(**batch).loss

    torch.testing.assert_close(adaptive.regularisation().detach(), added)


@pytest.mark.parametrize("method", sorted(CLASSES))
def test_every_initial_rank_has_the_scaling_of_plain_lora(bert_folder: Path, method: str) -> None:
    model, names = packed(bert_folder, "classification", (OF[method],))
    initial = {name: 2 + i for i, name in enumerate(names)}
    for name, layer in AdaptiveRanks(model, initial, 1, STEPS, ALPHA).layers.items():
        right, values, left = (p[ADAPTER] for p in (layer.lora_A, layer.lora_E, layer.lora_B))
        assert values.shape == (initial[name], 1)
        nn.init.normal_(values)
        x = torch.randn(3, 5, layer.in_features)
        with torch.no_grad():
            change = layer(x) - layer.get_base_layer()(x)
            expected = ALPHA * (left @ torch.diag(values.flatten()) @ right @ x.mT).mT
        torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-4)


def test_a_new_adapter_changes_nothing(bert_folder: Path) -> None:
    model, names = packed(bert_folder, "classification", EACH)
    before = logits(model)
    AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)

    torch.testing.assert_close(logits(model), before)


def test_only_the_named_modules_are_wrapped() -> None:
    """`outer.layer.1` ends with a name that was asked for, and `layer.11` begins with it."""
    model = Blocks()
    adaptive = AdaptiveRanks(model, {"layer.1": 3, "layer.2": 2}, 1, STEPS, ALPHA)

    assert set(lora_layers(model)) == {"layer.1", "layer.2"} == set(adaptive.layers)


@pytest.mark.parametrize("bits", [2, 3])
def test_hqq_layers_are_refused_by_name(bert_folder: Path, bits: int) -> None:
    stored = (PLAIN, Choice(bits, 0, "hqq"))
    model, names = packed(bert_folder, "classification", stored)
    message = rf"`initial_ranks` must name .*, got {names[1]} \(.*(?i:hqq).*\)\. Use --q"

    with pytest.raises(ValueError, match=message):
        AdaptiveRanks(model, dict.fromkeys(names, 6), 2, STEPS, ALPHA)
    assert not lora_layers(model)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`--max-steps` must be at least 5 .*, got 4\."):
        AdaptiveRanks(Blocks(), {"layer.0": 4}, 2, 4, ALPHA)


@pytest.mark.parametrize("final_rank", [-1, 0, 4, 5])
def test_ranks_that_cannot_fall_are_refused(final_rank: int) -> None:
    with pytest.raises(ValueError, match=rf"`final_rank` must be .*, got {final_rank}\."):
        AdaptiveRanks(Blocks(), {"layer.0": 4, "layer.1": 4}, final_rank, STEPS, ALPHA)
