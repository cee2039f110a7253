"""A trial from building to loading, on devices that this machine has or only pretends to."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import alrq_core
from alrq_core.context import TrialContext
from alrq_core.export.exact import save
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from alrq_core.sensitivity.shifts import visibility_table
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.fixed import fixed_allocation
from search_spaces.formats import Formats
from search_spaces.inventory import Inventory
from search_spaces.spaces import make_space
from tests.pretended import Labels, pretended
from tests.tiny import RECIPE, make_context, uniform

IDS = torch.tensor([[2, 5, 7, 9, 4, 3], [2, 8, 8, 6, 10, 3]])
SHORT = replace(RECIPE, max_steps=2)
# As few as AdaLoRA takes.
ADAPTIVE = replace(RECIPE, max_steps=5)
with_each_task = pytest.mark.parametrize("kind", ["classification", "language-modelling"])


class Card:
    """A CUDA GPU of this machine, asked what `Labels` know of one that is pretended."""

    kind = "cuda"

    def __len__(self) -> int:
        """Number of storages on it."""
        held: int = torch.cuda.memory_stats()["allocation.all.current"]
        return held

    @property
    def random_state(self) -> Tensor:
        return torch.cuda.get_rng_state()

    @contextmanager
    def without_waits(self) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        yield
        torch.cuda.set_sync_debug_mode("default")


on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cuda", "mps", pytest.param("card", marks=[pytest.mark.gpu, on_a_card])])
def labels(request: pytest.FixtureRequest) -> Iterator[Labels | Card]:
    if request.param == "card":
        yield Card()
        return
    with pretended(request.param) as labels:
        yield labels


def on(labels: Labels | Card, folder: Path, kind: TaskKind, recipe: Recipe = SHORT) -> TrialContext:
    return make_context(folder, kind, replace(recipe, device=labels.kind))


def every_format(inventory: Inventory, device: str) -> Allocation:
    """All formats of a device and several ranks in turn; embeddings in 4 bits."""
    methods = Formats(device=device).methods
    formats = [(bits, method) for bits, known in methods.items() for method in known]
    choices = {module.name: Choice(4, 0) for module in inventory.embeddings}
    for number, target in enumerate(inventory.targets):
        bits, method = formats[number % len(formats)]
        choices[target.name] = Choice(bits, (2, 0, 4)[number % 3], method)
    return Allocation({name: choices[name] for name in inventory.names})


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=ids).logits
    return found


@with_each_task
def test_a_trial_runs_from_building_to_loading(
    labels: Labels | Card, kind: TaskKind, bert_folder: Path, llama_folder: Path, tmp_path: Path
) -> None:
    folder = bert_folder if kind == "classification" else llama_folder
    context = on(labels, folder, kind)
    allocation = every_format(context.inventory, labels.kind)
    first = TrialRun(context, allocation, seed=0)
    first.advance(1)
    first.save_checkpoint(tmp_path / "checkpoint")
    run = TrialRun(context, allocation, seed=0)
    run.load_checkpoint(tmp_path / "checkpoint")
    report = run.advance(2)
    run.test()
    again = first.advance(2)
    loaded = alrq_core.load(save(run, tmp_path / "saved"))
    # A person who uses it has no autocast around it.
    found = logits(loaded.model, IDS.to(labels.kind)).cpu()

    assert again.loss == report.loss
    assert {m.method for m in run.receipt.modules.values()} == {
        method for known in Formats(device=labels.kind).methods.values() for method in known
    }
    assert torch.equal(found, logits(run.model.eval(), IDS.to(labels.kind)).cpu())


def test_adalora_runs_to_its_end(labels: Labels | Card, bert_folder: Path, tmp_path: Path) -> None:
    context = on(labels, bert_folder, "classification", ADAPTIVE)
    allocation = fixed_allocation("Joint-1", context.inventory)
    run = TrialRun(context, allocation, seed=0)
    run.advance(3)
    run.save_checkpoint(tmp_path / "checkpoint")
    run = TrialRun(context, allocation, seed=0)
    run.load_checkpoint(tmp_path / "checkpoint")
    run.advance(5)

    assert run.receipt.unchanged_after_training


@pytest.mark.parametrize("start", ["nothing", "reference"])
def test_steps_never_wait_for_the_device(
    labels: Labels | Card, start: str, llama_folder: Path
) -> None:
    context = on(labels, llama_folder, "language-modelling", RECIPE)
    allocation = every_format(context.inventory, labels.kind)
    run = TrialRun(context, uniform(context.inventory, 16, 4), seed=0)
    run.advance(1)
    if start == "reference":
        run.advance(RECIPE.max_steps)
        run = TrialRun(context, allocation, 0, reference=run.reference())
        run.advance(1)
    run.model.train()
    if labels.kind == "mps":
        pytest.skip("a copy to MPS waits")
    with labels.without_waits():
        run.training.train_step()


@pytest.mark.parametrize("start", ["residual", "eva"])
def test_adapters_start_from_data(labels: Labels | Card, start: str, bert_folder: Path) -> None:
    context = on(labels, bert_folder, "classification", replace(SHORT, lora_init=start))
    allocation = every_format(context.inventory, labels.kind)

    assert TrialRun(context, allocation, seed=0).advance(1).step == 1


def test_a_trial_runs_on_dequantised_copies(labels: Labels | Card, llama_folder: Path) -> None:
    recipe = replace(SHORT, execution="dequantized")
    context = on(labels, llama_folder, "language-modelling", recipe)
    allocation = every_format(context.inventory, labels.kind)

    assert TrialRun(context, allocation, seed=0).advance(2).step == 2


def test_dropout_is_the_same_for_both_readings_of_the_gradients(
    labels: Labels | Card, bert_folder: Path
) -> None:
    context = on(labels, bert_folder, "classification", replace(SHORT, dropout=0.5))
    drawn = labels.random_state
    run = TrialRun(context, every_format(context.inventory, labels.kind), seed=0)
    run.advance(1)

    assert run.receipt.lora_pairs_with_gradient == run.receipt.lora_pairs > 0
    assert not torch.equal(run.randomness.states[1], run.randomness.states[0])
    assert torch.equal(labels.random_state, drawn)


def test_the_table_is_measured(labels: Labels | Card, bert_folder: Path) -> None:
    context = on(labels, bert_folder, "classification")
    space = make_space("joint", context.inventory, Formats(device=labels.kind))
    run = TrialRun(context, uniform(context.inventory, 16, 4), 0)
    run.advance(context.recipe.max_steps)
    table = visibility_table(context, space, run.reference(), 0.01)

    assert table.modules.keys() == set(context.inventory.names)


@pytest.mark.parametrize("name", ["B-Ada", "every format"])
def test_a_trial_leaves_nothing_on_the_device(
    labels: Labels | Card, name: str, bert_folder: Path
) -> None:
    context = on(labels, bert_folder, "classification", ADAPTIVE)
    allocation = (
        every_format(context.inventory, labels.kind)
        if name == "every format"
        else fixed_allocation(name, context.inventory)
    )
    held = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            run = TrialRun(context, allocation, seed=0)
            run.advance(5)
            during = len(labels)
            del run
            # Codes that no earlier test has made are made from moments, which a context shares.
            context.let_go()
            held.append(len(labels))
    finally:
        gc.enable()

    # Libraries keep tables of constants once.
    assert held[0] == held[1] < during / 20


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_what_fails_there_fails_here(kind: str) -> None:
    with pretended(kind):
        there = torch.ones(3, 3, device=kind)
        assert there.device == torch.device(kind, 0)
        assert (there * torch.tensor(2.0)).sum().cpu().numpy() == 18
        with pytest.raises(RuntimeError, match="on several devices: cpu"):
            there @ torch.ones(3, 3)
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        if kind == "mps":
            with pytest.raises(TypeError, match="float64"):
                there.double()
            with pytest.raises(NotImplementedError, match="eigh"):
                torch.linalg.eigh(there)
    assert there.device == torch.device("cpu")
