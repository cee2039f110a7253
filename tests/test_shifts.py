"""First-order shifts of a reference's answers, against autograd and against real divergences."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext
from alrq_core.data.encode import collate
from alrq_core.data.losses import logits_of
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from alrq_core.sensitivity.shifts import Shifts, answer_shifts, finished, visibility_table
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import Formats
from search_spaces.spaces import Space, make_space
from tests.tiny import make_context, uniform

RECIPE = Recipe(max_steps=16, batch_size=8, learning_rate=1e-2, device="cpu", cpu_dtype="float32")
SEED = 1
KINDS: tuple[TaskKind, ...] = ("classification", "language-modelling")


class Setting:
    """A tiny model with a reference, and the shifts of a space over it."""

    def __init__(self, context: TrialContext) -> None:
        self.context = context
        run = TrialRun(context, uniform(context.inventory, 16, 4), SEED)
        run.advance(16)
        self.reference: Reference = run.reference()
        self.space: Space = make_space("joint", context.inventory, Formats(backend="hqq"))
        self.shifts: Shifts = finished(answer_shifts(context, self.space, self.reference))

    def divergence(self, name: str, choice: Choice) -> float:
        """The divergence of the reference with one module changed."""
        allocation = self.reference.allocation
        changed = Allocation({**allocation.choices, name: choice})
        run = TrialRun(self.context, changed, SEED, reference=self.reference)
        found = run.advance(0).divergence
        assert found is not None
        return found

    def predicted(self, name: str, choice: Choice) -> float:
        place = sorted({0, *self.space.ranks.get(name, ())}).index(choice.rank)
        return float(self.shifts[name][choice.format][place].square().mean() / 2)


@pytest.fixture(scope="module")
def settings(bert_folder: Path, llama_folder: Path) -> Callable[[TaskKind], Setting]:
    folders = dict(zip(KINDS, (bert_folder, llama_folder), strict=True))
    made = {kind: Setting(make_context(folders[kind], kind, RECIPE)) for kind in KINDS}
    return lambda kind: made[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_s_shift_is_that_of_autograd(
    settings: Callable[[TaskKind], Setting], kind: TaskKind
) -> None:
    """The first sequence, the first linear layer, 4 bits, rank 0: the direction's slope."""
    setting = settings(kind)
    context, name = setting.context, setting.context.inventory.targets[0].name
    stored = next(f for f in setting.space.formats_of(name) if f.bits == 4)
    error = context.dequantised(name, stored) - context.tuned_weight(setting.reference, name)
    run = TrialRun(context, setting.reference.allocation, SEED, reference=setting.reference)
    batch = collate(context.parts.scored, torch.arange(1).numpy(), context.task.pad_id)
    layer = run.model.get_submodule(name).get_base_layer()  # type: ignore[operator]
    weight = layer.dequantised().clone()

    def moved(size: float) -> Tensor:
        layer.weight.data.copy_((weight + size * error).to(layer.weight.dtype))
        with torch.no_grad():
            return logits_of(run.model.eval(), batch).double()

    if kind == "language-modelling":
        # Its direction is drawn token by token: only the size can be told, see the next test.
        assert setting.shifts[name][stored].shape == (6, 25 * len(context.parts.scored))
        return
    layer.weight.data = layer.weight.data.float()
    slope = (moved(0.01) - moved(-0.01)) / 0.02
    p = moved(0.0).softmax(-1)
    expected = (slope[:, 0] - slope[:, 1]) * p.prod(-1).sqrt()

    assert float(setting.shifts[name][stored][0, 0]) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_mean_square_is_the_divergence_of_one_change(
    settings: Callable[[TaskKind], Setting], kind: TaskKind
) -> None:
    """Of small changes, summed: the tiny model is far from linear in larger ones."""
    setting = settings(kind)
    found = []
    for target in setting.context.inventory.targets[:4]:
        for bits, rank in ((4, 0), (4, 2), (8, 0)):
            stored = next(f for f in setting.space.formats_of(target.name) if f.bits == bits)
            choice = Choice.of(stored, rank)
            truth = setting.divergence(target.name, choice)
            found.append((setting.predicted(target.name, choice), truth))
    total = [sum(each) for each in zip(*found, strict=True)]

    assert total[0] == pytest.approx(total[1], rel=0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_counts_with_all_that_shares_it(
    settings: Callable[[TaskKind], Setting], kind: TaskKind
) -> None:
    setting = settings(kind)
    name = setting.context.inventory.embeddings[0].name
    for stored in setting.space.formats_of(name):
        choice = Choice.of(stored, 0)
        predicted, truth = setting.predicted(name, choice), setting.divergence(name, choice)
        assert predicted == pytest.approx(truth, rel=0.5, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_the_reference_itself_moves_nothing(
    settings: Callable[[TaskKind], Setting], kind: TaskKind
) -> None:
    setting = settings(kind)
    name = setting.context.inventory.targets[0].name
    assert setting.predicted(name, Choice(16, 8)) < 1e-3 * setting.predicted(name, Choice(16, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_embeddings_lose_is_measured(
    settings: Callable[[TaskKind], Setting], kind: TaskKind
) -> None:
    setting = settings(kind)
    table = visibility_table(setting.context, setting.space, setting.reference, 0.01)
    for embedding in setting.context.inventory.embeddings:
        known = table.modules[embedding.name]
        assert known.ranks == (0,)
        assert set(known.damage) == set(setting.space.formats_of(embedding.name))
        for stored, (lost,) in known.damage.items():
            choice = Choice.of(stored, 0)
            assert lost == pytest.approx(setting.divergence(embedding.name, choice), abs=1e-6)


def test_the_table_falls_with_rank_and_bits(settings: Callable[[TaskKind], Setting]) -> None:
    setting = settings("classification")
    table = visibility_table(setting.context, setting.space, setting.reference, 0.01)
    inventory = setting.context.inventory
    sizes = {bits: table.predict(setting.space.nearest_uniform(bits, 8)) for bits in (2, 3, 4, 8)}

    assert set(table.modules) == set(inventory.names)
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
