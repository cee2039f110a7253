import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alrq_core.context import TrialContext
from alrq_core.data.encode import collate
from alrq_core.data.losses import sequence_losses
from alrq_core.models.heads import head_names, reset_head
from alrq_core.records import TaskKind
from alrq_core.sensitivity import measure
from alrq_core.sensitivity.gradients import SquaredGradients, SummedGradients, collect_gradients
from alrq_core.sensitivity.measure import measure_plan, table_key, visibility_table
from alrq_core.sensitivity.table import (
    ModuleVisibility,
    VisibilityTable,
    decay,
    load_table,
    table_path,
)
from search_spaces.allocation import Allocation, Choice
from search_spaces.spaces import Space, make_space
from tests.tiny import make_context, save_tokenizer

KINDS: tuple[TaskKind, ...] = ("classification", "language-modelling")
Contexts = Callable[[TaskKind], TrialContext]


@pytest.fixture(scope="module")
def context_of(bert_folder: Path, llama_folder: Path) -> Contexts:
    folders = dict(zip(KINDS, (bert_folder, llama_folder), strict=True))
    made = {kind: make_context(folders[kind], kind) for kind in KINDS}
    return lambda kind: made[kind]


def space_of(context: TrialContext) -> Space:
    return make_space("joint", context.inventory)


@pytest.fixture(scope="module")
def tables(context_of: Contexts) -> dict[TaskKind, VisibilityTable]:
    return {k: visibility_table(context_of(k), space_of(context_of(k))) for k in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_single_sequences_agree_with_autograd(
    context_of: Contexts, kind: TaskKind
) -> None:
    context = context_of(kind)
    model, train = context.base, context.task.train
    batches = [collate(train, train_rows, context.task.pad_id) for train_rows in ([0, 1, 2], [3])]
    names = context.inventory.names
    squared, summed = SquaredGradients(), SummedGradients()
    for sums in (squared, summed):
        losses = collect_gradients(
            model, {name: name for name in names}, batches, sums, torch.float32
        )
        assert len(losses) == 4
    expected = {name: torch.zeros(model.get_parameter(f"{name}.weight").shape) for name in names}
    plain = {name: gradient.clone() for name, gradient in expected.items()}
    for row in range(4):
        model.zero_grad()
        found, _ = sequence_losses(model, collate(train, [row], context.task.pad_id))
        found.sum().backward()
        for name in names:
            gradient = model.get_parameter(f"{name}.weight").grad
            assert gradient is not None
            expected[name] += gradient**2
            plain[name] += gradient
    model.zero_grad()
    for name in names:
        torch.testing.assert_close(squared.sums[name], expected[name], rtol=1e-3, atol=1e-10)
        if name in summed.sums:
            torch.testing.assert_close(summed.sums[name], plain[name], rtol=1e-3, atol=1e-6)
    assert set(summed.sums) >= {target.name for target in context.inventory.targets}


def test_a_tied_head_counts_for_its_embedding(context_of: Contexts, tmp_path: Path) -> None:
    config = LlamaConfig(
        **{**context_of("language-modelling").base.config.to_dict(), "tie_word_embeddings": True}
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    context = make_context(tmp_path, "language-modelling")
    (embedding,) = context.inventory.embeddings
    seen: list[tuple[str, ...]] = []

    class Seen(SquaredGradients):
        def add(self, name: str, x: torch.Tensor, gradient: torch.Tensor) -> None:
            super().add(name, x, gradient)
            seen.append(("product", name))

        def add_lookup(self, name: str, *args: Any) -> None:
            super().add_lookup(name, *args)
            seen.append(("lookup", name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SquaredGradients", Seen)
        table = visibility_table(context, space_of(context))
    assert {("product", embedding.name), ("lookup", embedding.name)} <= set(seen)
    assert ("product", "lm_head") not in seen
    assert table.modules[embedding.name].ranks == (0,)
    assert min(d[0] for d in table.modules[embedding.name].damage.values()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_table_has_every_choice(
    context_of: Contexts, tables: dict[TaskKind, VisibilityTable], kind: TaskKind
) -> None:
    space, table = space_of(context_of(kind)), tables[kind]
    assert tuple(table.modules) == space.inventory.names
    for name, module in table.modules.items():
        without = [left[0] for left in module.damage.values()]
        # In ascending bits.
        assert without == sorted(without, reverse=True) and without[0] > 0
        for left in module.damage.values():
            assert list(left) == sorted(left, reverse=True) and left[-1] >= 0
        assert module.gain[0] == 0 and list(module.gain) == sorted(module.gain)
        for bits in space.bits[name]:
            for rank in space.ranks[name]:
                choice = space.choice(name, bits, rank, 64)
                value = table.value(name, choice)
                assert value == table.damage(name, choice) - table.gain(name, choice)
    plan = measure_plan(context_of(kind).recipe.max_steps)
    assert table.steps == plan.end_step and table.sequences == 8 * plan.batches


def test_a_prediction_adds_its_modules() -> None:
    low, high = Choice(2, 4).format, Choice(16, 4).format
    module = ModuleVisibility(
        ranks=(0, 4), damage={low: (0.5, 0.25), high: (0.125, 0.0)}, gain=(0.0, 0.0625)
    )
    table = VisibilityTable(
        key="k",
        modules={"b.0.x": module, "b.1.x": replace(module, damage={low: (0.25, 0.0)})},
        steps=1,
        sequences=1,
        start_loss=1.0,
        end_loss=0.5,
        seconds=1.0,
    )
    allocation = Allocation({"b.0.x": Choice(2, 4), "b.1.x": Choice(2, 0)})
    assert table.predict(allocation) == 0.25 - 0.0625 + 0.25
    assert table.predict(allocation, gain_weight=0.0) == 0.5
    assert decay(table, {"b.0.x": 0, "b.1.x": 1}, low) == 2.0
    for name, choice in (("b.0.x", Choice(4, 4)), ("b.0.x", Choice(2, 8)), ("c", Choice(2, 4))):
        with pytest.raises(ValueError, match=f"must be one that the table has .* for {name}"):
            table.value(name, choice)


def test_table_survives_file_and_pickle(
    tables: dict[TaskKind, VisibilityTable], tmp_path: Path
) -> None:
    table = tables["classification"]
    table.save(tmp_path)
    assert load_table(tmp_path, table.key) == table == pickle.loads(pickle.dumps(table))
    path = table_path(tmp_path, table.key)
    path.write_text(path.read_text()[:-9])
    assert load_table(tmp_path, table.key) is None
    with pytest.raises(ValueError, match="version"):
        VisibilityTable.from_json({**table.to_json(), "version": 0})


def test_a_table_is_measured_once_and_repeats(
    context_of: Contexts,
    tables: dict[TaskKind, VisibilityTable],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = context_of("classification")
    space = space_of(context)
    first = visibility_table(context, space, tmp_path)
    assert replace(first, seconds=0.0) == replace(tables["classification"], seconds=0.0)
    monkeypatch.delattr(measure, "measure_table")
    assert visibility_table(context, space, tmp_path) == first


def test_a_table_that_can_not_be_kept_is_measured_all_the_same(
    context_of: Contexts,
    tables: dict[TaskKind, VisibilityTable],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As with an HF_HOME that is read-only, or on a full disk."""
    (tmp_path / "file").touch()
    context, table = context_of("classification"), tables["classification"]
    monkeypatch.setattr(measure, "measure_table", lambda *_: table)

    assert visibility_table(context, space_of(context), tmp_path / "file" / "folder") == table
    assert "the visibility table can't be kept in" in capsys.readouterr().err


def test_the_key_tells_what_matters(context_of: Contexts) -> None:
    context = context_of("classification")
    space = space_of(context)
    key = table_key(context, space, 0)

    def other(**changes: object) -> str:
        recipe = replace(context.recipe, **changes)  # type: ignore[arg-type]
        return table_key(replace(context, recipe=recipe), space, 0)

    assert key == other(execution="dequantized", accumulation_steps=2, device="cpu")
    base = deepcopy(context.base)
    reset_head(base, head_names(base, "classification"))
    assert key == table_key(replace(context, base=base), space, 0)
    shorter = replace(context, task=replace(context.task, train=context.task.validation))
    assert (
        len({key, other(learning_rate=0.1), other(max_steps=9), table_key(context, space, 1)}) == 4
    )
    assert key != table_key(shorter, space, 0)
    assert key != table_key(context, make_space("bits", context.inventory), 0)


def test_refuses_a_fixed_space(context_of: Contexts) -> None:
    context = context_of("classification")
    with pytest.raises(ValueError, match="must be a searched one"):
        visibility_table(context, make_space("B-FP", context.inventory))
