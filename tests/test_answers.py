"""The divergence of a model's answers from those that are kept of another."""

from pathlib import Path

import numpy as np
import pytest
import torch

from alrq_core.data import losses
from alrq_core.data.answers import Answers, divergences, likeliest
from alrq_core.data.encode import Batch, collate
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

    assert theirs[0].tolist() == [[0, 1]]
    found = divergences(ours, collate_classes(), theirs).item()
    assert found == pytest.approx(expected, abs=1e-6)
    whole = divergences(ours, collate_classes(), likeliest(logs)).item()
    assert found <= whole


def collate_classes() -> Batch:
    ids = torch.zeros(1, 1, dtype=torch.long)
    return Batch(ids, ids, ids[0], np.zeros(1))


def test_divergence_counts_predicted_tokens_alone(llama_folder: Path) -> None:
    task = make_context(llama_folder, "language-modelling").task
    batch = collate(task.train, np.arange(3), task.pad_id)
    generator = torch.Generator().manual_seed(0)
    predicted = batch.input_ids.shape[1] - 1
    ours, theirs = torch.randn(2, 3 * predicted, 20, generator=generator)
    found = divergences(ours, batch, likeliest(theirs))
    p, q = theirs.softmax(-1), ours.log_softmax(-1)
    each = (p * (p.log() - q)).sum(-1).view(3, predicted)

    torch.testing.assert_close(found, each.mean(dim=1))


def test_answers_of_sequences_are_found_in_any_order() -> None:
    ids = torch.arange(12, dtype=torch.int32).view(6, 2)
    answers = Answers(ids, ids.float(), torch.tensor([0, 1, 4, 6]))
    found, logs = answers.of(np.array([2, 0]), torch.device("cpu"))

    assert found.tolist() == [[8, 9], [10, 11], [0, 1]]
    assert torch.equal(logs, found.float())


def test_parts_of_the_logits_give_what_all_of_them_give(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 20, generator=generator, requires_grad=True)
    theirs = likeliest(torch.randn(7, 20, generator=generator))
    ids = torch.zeros(7, 1, dtype=torch.long)
    batch = Batch(ids, ids, torch.arange(7), np.arange(7))
    results = []
    for chunk in (2**24, 40):
        monkeypatch.setattr(losses, "CHUNK", chunk)
        found = torch.cat((divergences(logits, batch, theirs), losses.losses_of(logits, batch)))
        [gradient] = torch.autograd.grad(found.square().sum(), logits)
        with torch.no_grad():
            assert torch.equal(divergences(logits, batch, theirs), found[:7])
        results.append((found.detach(), gradient))

    torch.testing.assert_close(*results)
