"""Losses and metrics, against values computed another way."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from alrq_core.context import TrialContext
from alrq_core.data.encode import Tokens, collate
from alrq_core.data.losses import sequence_losses
from alrq_core.scoring import Evaluation, Scorer
from tests.tiny import RECIPE, make_context

CPU = torch.device("cpu")


def test_metrics_of_known_answers() -> None:
    result = Evaluation(
        losses=np.array([0.1, 0.2, 0.3, 0.4]),
        predictions=np.array([0, 1, 1, 1]),
        labels=np.array([0, 1, 0, 1]),
    )

    assert result.accuracy == 0.75
    assert result.f1 == pytest.approx((2 / 3 + 0.8) / 2)
    assert result.loss == pytest.approx(0.25)
    assert result.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 10 / 2)
    assert result.perplexity is None
    score = result.test_score()
    assert score.scores == (1.0, 1.0, 0.0, 1.0)
    assert score.predictions == (0, 1, 1, 1)
    assert {"context_tokens", "stride_tokens"}.isdisjoint(score.to_json())


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    result = Evaluation(np.array([1.0, 3.0]), np.empty(0), np.empty(0))

    assert result.perplexity == pytest.approx(math.exp(2.0))
    assert result.accuracy is None
    assert Evaluation(np.array([1000.0, 1000.0]), np.empty(0), np.empty(0)).perplexity == math.inf


def scorer(context: TrialContext) -> Scorer:
    return Scorer(context.base, context.task, RECIPE, torch.float32, CPU)


def test_exact_match_is_what_greedy_decoding_would_answer(llama_folder: Path) -> None:
    context = make_context(llama_folder, "language-modelling")
    model: Any = context.base.eval()
    generator = np.random.default_rng(0)
    prompts = [generator.integers(4, 16, length) for length in (3, 7, 4, 5, 6, 3)]
    sequences, counted, wanted = [], [], []
    for number, prompt in enumerate(prompts):
        ids = torch.from_numpy(prompt)[None]
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
        )[0].numpy()
        # Every other answer is wrong in its first, a middle or its last token.
        if number % 2:
            found[len(prompt) + number // 2] = (found[len(prompt) + number // 2] + 1) % 32
        sequences.append(found)
        counted.append(np.arange(len(found)) >= len(prompt))
        wanted.append(number % 2 == 0)
    tokens = Tokens(
        np.concatenate(sequences).astype(np.int32),
        np.cumsum([0, *map(len, sequences)]),
        np.empty(0, dtype=np.int64),
        np.concatenate(counted),
    )
    task = replace(context.task, test=tokens, conversations=True, exact_match=True)
    evaluation = scorer(replace(context, task=task)).evaluate(tokens)

    assert evaluation.matches is not None
    assert evaluation.matches.tolist() == wanted
    score = evaluation.test_score()
    assert (score.metric, score.value, score.f1) == ("exact_match", 0.5, None)
    assert score.scores == tuple(map(float, wanted))
    assert score.context_tokens is None


def test_only_language_modelling_has_a_context(bert_folder: Path, llama_folder: Path) -> None:
    scores = {}
    for kind, folder in (("classification", bert_folder), ("language-modelling", llama_folder)):
        context = make_context(folder, kind)  # type: ignore[arg-type]
        task = context.task
        scores[kind] = scorer(context).evaluate(task.test).test_score()

    assert scores["classification"].context_tokens is None
    assert len(scores["classification"].predictions) == 24
    assert scores["language-modelling"].context_tokens == 12
    assert scores["language-modelling"].stride_tokens == 12
    assert scores["language-modelling"].predictions == ()


def test_losses_do_not_depend_on_the_batch(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    task, model = context.task, context.base.eval()
    together = scorer(context).evaluate(task.validation)
    for row in (0, 5, 11):
        batch = collate(task.validation, np.array([row]), task.pad_id)
        with torch.no_grad():
            alone, logits = sequence_losses(model, batch)
        assert together.losses[row] == pytest.approx(alone.item(), abs=1e-5)
        assert together.predictions[row] == logits.argmax().item()


def test_language_modelling_losses_are_those_of_transformers(llama_folder: Path) -> None:
    context = make_context(llama_folder, "language-modelling")
    batch = collate(context.task.test, np.arange(6), context.task.pad_id)
    with torch.no_grad():
        losses, _ = sequence_losses(context.base.eval(), batch)
        reference = context.base(input_ids=batch.input_ids, labels=batch.input_ids).loss

    assert losses.mean().item() == pytest.approx(reference.item(), abs=1e-5)


def test_evaluation_draws_nothing_and_keeps_no_graph(bert_folder: Path) -> None:
    context = make_context(bert_folder, "classification")
    state = torch.get_rng_state()
    model: nn.Module = context.base.train()
    Scorer(model, context.task, RECIPE, torch.bfloat16, CPU).evaluate(context.task.test)

    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_answers_alone_are_scored_whatever_pads_them(llama_folder: Path) -> None:
    """Rows of several lengths in one batch, against each row by itself and all of its logits."""
    context = make_context(llama_folder, "language-modelling")
    generator = np.random.default_rng(0)
    lengths = np.array([5, 9, 12, 3])
    counted = generator.random(int(lengths.sum())) < 0.5
    counted[np.cumsum(lengths) - 1] = True
    ids = generator.integers(4, 16, len(counted)).astype(np.int32)
    tokens = Tokens(ids, np.array([0, *lengths.cumsum()]), np.empty(0), counted)
    found = scorer(context).evaluate(tokens, scorer(context).answers_to(tokens))
    expected = []
    for row in range(len(tokens)):
        one = torch.from_numpy(tokens.sequence(row).astype(np.int64))[None]
        with torch.no_grad():
            logs = context.base.eval()(input_ids=one).logits.log_softmax(-1)[0]
        places = np.flatnonzero(tokens.predicted(row))
        expected.append(-float(sum(logs[place - 1, one[0, place]] for place in places)))
    mean = tokens.answers.mean()

    assert found.losses == pytest.approx(np.array(expected) / mean, abs=1e-5)
    assert found.loss == pytest.approx(sum(expected) / tokens.answers.sum(), abs=1e-5)
    assert found.divergences == pytest.approx(np.zeros(4), abs=1e-5)
