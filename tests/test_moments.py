"""Moments of what enters each module: a part of the model at a time, keyed by their origin."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alrq_core.context import TrialContext
from alrq_core.data.encode import Batch
from alrq_core.data.moments import InputMoments
from tests.tiny import make_context

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def context(bert_folder: Path) -> TrialContext:
    return make_context(bert_folder, "classification")


def parts(context: TrialContext, held_bytes: int) -> tuple[InputMoments, list[int]]:
    """Return moments of which so many bytes are held, and the passes that they took so far."""
    passes: list[int] = []

    def batches() -> Sequence[Batch]:
        passes.append(1)
        return context.parts.calibration()

    names = {target.name: target.name for target in context.inventory.targets}
    return InputMoments(context.base, "files", names, batches, CPU, held_bytes=held_bytes), passes


def test_a_part_at_a_time_gives_what_all_at_once_do(context: TrialContext) -> None:
    whole, once = parts(context, 10**9)
    single, often = parts(context, 5 * 4 * 64**2)
    for name in whole:
        torch.testing.assert_close(single[name], whole[name], rtol=0, atol=0)

    assert (len(once), len(often)) == (1, 4)
    assert len(whole) == len(context.inventory.targets) == 12


def test_what_comes_after_the_last_module_runs_once(context: TrialContext) -> None:
    moments, _ = parts(context, 5 * 4 * 64**2)
    batches = context.parts.calibration()
    first, last = (context.inventory.targets[place].name for place in (0, -1))
    ran: list[str] = []
    for name in (first, last):
        module = context.base.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    try:
        moments[first]
    finally:
        for name in (first, last):
            context.base.get_submodule(name)._forward_pre_hooks.clear()

    assert len(batches) > 1
    assert (ran.count(first), ran.count(last)) == (len(batches), 1)


def test_a_tied_head_gives_its_embedding_a_moment(
    llama_folder: Path, context: TrialContext
) -> None:
    model = make_context(llama_folder, "language-modelling")
    embedding = model.inventory.embeddings[0].name

    assert embedding not in context.moments
    assert context.moments.get(context.inventory.embeddings[0].name) is None
    tied = model.base.get_input_embeddings().weight is model.base.get_output_embeddings().weight
    assert (embedding in model.moments) == tied


def test_the_key_follows_the_model_and_the_text(bert_folder: Path, tmp_path: Path) -> None:
    context = make_context(bert_folder, "classification")
    shorter = replace(context, task=replace(context.task, train=context.task.train.first(40)))
    assert shorter.moments.key != context.moments.key
    copied = shutil.copytree(bert_folder, tmp_path / "copy")
    assert make_context(copied, "classification").moments.key == context.moments.key
    weights = copied / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, weights, {"format": "pt"})
    assert make_context(copied, "classification").moments.key != context.moments.key


def test_too_little_text_is_refused_with_what_is_needed(context: TrialContext) -> None:
    small = replace(context, task=replace(context.task, train=context.task.train.first(5)))
    with pytest.raises(
        ValueError, match=r"must have at least 128 tokens in its train .*, got \d+\."
    ):
        small.moments[context.inventory.targets[0].name]
