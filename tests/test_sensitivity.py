"""Gradients of single sequences against autograd, and the table that is made with them."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from alrq_core.context import TrialContext
from alrq_core.data.encode import Batch, collate
from alrq_core.data.gradients import collect_gradients
from alrq_core.data.losses import sequence_losses
from alrq_core.records import TaskKind
from alrq_core.sensitivity.shifts import visibility_table
from alrq_core.sensitivity.table import ModuleVisibility, VisibilityTable, flat_table
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.spaces import make_space
from tests.tiny import make_context, save_tokenizer, uniform

KINDS: tuple[TaskKind, ...] = ("classification", "language-modelling")
Contexts = Callable[[TaskKind], TrialContext]


@pytest.fixture(scope="module")
def context_of(bert_folder: Path, llama_folder: Path) -> Contexts:
    folders = dict(zip(KINDS, (bert_folder, llama_folder), strict=True))
    made = {kind: make_context(folders[kind], kind) for kind in KINDS}
    return lambda kind: made[kind]


class Sums:
    """Products of gradients and inputs, sequence by sequence, as weights' gradients have them."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}
        self.lookups: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        each = torch.einsum("sto,sti->soi", gradient, x)
        self.of[name] = torch.cat([self.of[name], each]) if name in self.of else each

    def add_lookup(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        self.lookups[name] = ids, gradient


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return sequence_losses(model, batch)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_single_sequences_agree_with_autograd(
    context_of: Contexts, kind: TaskKind
) -> None:
    context = context_of(kind)
    model, train = context.base, context.task.train
    batches = [collate(train, rows, context.task.pad_id) for rows in ([0, 1, 2], [3])]
    names = {name: name for name in context.inventory.names}
    sums = Sums()
    collect_gradients(model, names, batches, sums, losses)
    for row in range(4):
        model.zero_grad()
        losses(model, collate(train, [row], context.task.pad_id)).sum().backward()
        for name, found in sums.of.items():
            gradient = model.get_parameter(f"{name}.weight").grad
            assert gradient is not None
            torch.testing.assert_close(found[row], gradient, rtol=1e-3, atol=1e-6)
    embedding = context.inventory.embeddings[0]
    ids, rows = sums.lookups[embedding.name]
    table = model.get_parameter(f"{embedding.name}.weight")
    expected = torch.zeros_like(table).index_add_(0, ids.flatten(), rows.flatten(0, 1))
    torch.testing.assert_close(expected, table.grad, rtol=1e-3, atol=1e-6)
    model.zero_grad()
    assert set(sums.of) >= {target.name for target in context.inventory.targets}


def test_a_tied_head_counts_for_its_embedding(context_of: Contexts, tmp_path: Path) -> None:
    """Its products are added to the look-ups of the matrix that both share."""
    config = context_of("language-modelling").base.config.to_dict()
    tables = []
    for tied in (True, False):
        torch.manual_seed(0)
        folder = tmp_path / f"{tied}"
        model = LlamaForCausalLM(LlamaConfig(**{**config, "tie_word_embeddings": tied}))
        if not tied:
            model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
        model.save_pretrained(folder)
        save_tokenizer(folder)
        context = make_context(folder, "language-modelling")
        run = TrialRun(context, uniform(context.inventory, 16, 4), 0)
        run.advance(context.recipe.max_steps)
        space = make_space("joint", context.inventory)
        tables.append(visibility_table(context, space, run.reference(), 0.01))
        embedding = context.inventory.embeddings[0]
    tied_table, alone = (table.modules[embedding.name] for table in tables)

    assert tied_table.ranks == (0,)
    assert "lm_head" not in tables[0].modules
    for stored, (damage,) in alone.damage.items():
        if stored.bits < 16:
            assert tied_table.damage[stored][0] > 1.5 * damage


def test_a_prediction_adds_its_modules() -> None:
    low, high = Choice(2, 4).format, Choice(16, 4).format
    module = ModuleVisibility(ranks=(0, 4), damage={low: (0.5, 0.25), high: (0.125, 0.0)})
    table = VisibilityTable(
        modules={"b.0.x": module, "b.1.x": replace(module, damage={low: (0.25, 0.0)})},
        resolution=0.01,
        sequences=1,
        seconds=1.0,
    )
    allocation = Allocation({"b.0.x": Choice(2, 4), "b.1.x": Choice(2, 0)})
    assert table.predict(allocation) == 0.25 + 0.25
    for name, choice in (("b.0.x", Choice(4, 4)), ("b.0.x", Choice(2, 8)), ("c", Choice(2, 4))):
        with pytest.raises(ValueError, match=f"must be one that the table has .* for {name}"):
            table.damage(name, choice)


def test_table_survives_json_and_pickle(context_of: Contexts) -> None:
    table = flat_table(make_space("joint", context_of("classification").inventory))
    assert VisibilityTable.from_json(table.to_json()) == table == pickle.loads(pickle.dumps(table))
    with pytest.raises(ValueError, match="version"):
        VisibilityTable.from_json({**table.to_json(), "version": 0})


def test_a_flat_table_falls_with_bits_and_rank(context_of: Contexts) -> None:
    space = make_space("joint", context_of("classification").inventory)
    table = flat_table(space)
    for name, module in table.modules.items():
        for left in module.damage.values():
            assert list(left) == sorted(left, reverse=True)
        without = [table.damage(name, space.choice(name, b, 0, 64)) for b in space.bits[name]]
        assert without == sorted(without, reverse=True)


def test_refuses_a_fixed_space(context_of: Contexts) -> None:
    context = context_of("classification")
    run = TrialRun(context, uniform(context.inventory, 16, 4), 0)
    with pytest.raises(ValueError, match="must be a searched one"):
        visibility_table(context, make_space("B-FP", context.inventory), run.reference(), 0.1)
