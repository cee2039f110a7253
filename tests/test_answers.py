"""The divergence of a model's answers from those that are kept of another."""

from pathlib import Path

import numpy as np
import pytest
import torch

from alrq_core.data.answers import Answers, divergences, likeliest
from alrq_core.data.encode import collate
from tests.tiny import make_context


def test_divergence_by_hand() -> None:
    """Two classes at 0.8 and 0.2 against 0.5 and 0.5."""
    theirs = likeliest(torch.tensor([[0.8, 0.2]]).log())
    batch = collate_classes()
    found = divergences(torch.zeros(1, 2), batch, theirs)

    assert found.item() == pytest.approx(0.8 * np.log(1.6) + 0.2 * np.log(0.4), abs=1e-6)


def test_what_is_not_kept_counts_as_one_answer() -> None:
    logs = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    theirs = likeliest(logs, kept=2)
    ours = torch.tensor([[0.3, 0.5, 0.05, 0.15]]).log()
    expected = 0.5 * np.log(0.5 / 0.3) + 0.3 * np.log(0.3 / 0.5)

    assert theirs.ids.tolist() == [[0, 1]]
    found = divergences(ours, collate_classes(), theirs).item()
    assert found == pytest.approx(expected, abs=1e-6)
    whole = divergences(ours, collate_classes(), likeliest(logs)).item()
    assert found <= whole


def collate_classes() -> object:
    class One:
        labels = torch.zeros(1, dtype=torch.long)

    return One()


def test_divergence_counts_predicted_tokens_alone(llama_folder: Path) -> None:
    task = make_context(llama_folder, "language-modelling").task
    batch = collate(task.train, np.arange(3), task.pad_id)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 3, batch.input_ids.shape[1], 20, generator=generator)
    answers = likeliest(theirs[:, :-1])
    whole = divergences(ours, batch, answers)
    batch.labels[:, :6] = -100
    rest = divergences(ours, batch, answers)
    p, q = theirs.softmax(-1), ours.log_softmax(-1)
    each = (p * (p.log() - q)).sum(-1)[:, :-1]

    torch.testing.assert_close(whole, each.mean(dim=1))
    torch.testing.assert_close(rest, each[:, 5:].mean(dim=1))
    assert isinstance(answers, Answers)
