"""The Fisher information of a model's answers, factor by factor, and the starts it makes."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alrq_core.adapters import starts
from alrq_core.adapters.starts import Corrections
from alrq_core.context import TrialContext
from alrq_core.data.encode import Batch
from alrq_core.data.fisher import DAMPING, Factors, FisherFactors, answer_scores, projected
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun
from tests.tiny import make_context, mixed, uniform

RECIPE = Recipe(max_steps=16, batch_size=8, learning_rate=1e-2, device="cpu", cpu_dtype="float32")
SEED = 1


class Toy(nn.Module):
    """Two layers on known inputs; the second token of a sequence reaches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        self.reader, self.idle = nn.Linear(2, 3, bias=False), nn.Linear(2, 2, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = self.words(input_ids)
        self.idle(tokens)
        read: Tensor = self.reader(tokens)
        return read[:, 0]


def toy_score(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """The first token's outputs, times 1, 2 and 0: its gradient."""
    found: Tensor = model(batch.input_ids) @ torch.tensor([1.0, 2.0, 0.0])
    return found


def toy_factors(held_bytes: int) -> FisherFactors:
    ids = torch.tensor([[0, 1], [1, 1], [1, 0]])
    batch = Batch(ids, torch.ones_like(ids), torch.zeros(3), np.arange(3))
    sizes = {"reader": (3, 2), "idle": (2, 2)}
    return FisherFactors(Toy, sizes, lambda: [batch], toy_score, held_bytes)


def damped(measured: Tensor, beside: Tensor) -> Tensor:
    """Both at a trace of 1, added, at a trace of their size."""
    mixed = measured / measured.trace() + DAMPING * beside / beside.trace()
    return mixed / mixed.trace() * len(mixed)


@pytest.mark.parametrize("held_bytes", [1, 10**6])
def test_factors_of_known_inputs(held_bytes: int) -> None:
    """First tokens are (1, 0), (0, 2), (0, 2), and every gradient is (1, 2, 0)."""
    factors = toy_factors(held_bytes)
    inputs = torch.diag(torch.tensor([1.0, 8.0]))
    gradient = torch.tensor([1.0, 2.0, 0.0])
    outputs = torch.outer(gradient, gradient)

    for _ in range(2):
        found = factors.of("reader")
        torch.testing.assert_close(found.inputs, damped(inputs, inputs))
        assert found.outputs is not None
        square = found.outputs @ found.outputs.T
        expected = damped(outputs, torch.eye(3))
        torch.testing.assert_close(square / square.trace(), expected / expected.trace())
        # No answer depends on the other: all of its directions count alike.
        idle = factors.of("idle")
        assert torch.equal(idle.inputs, torch.eye(2))
        assert torch.equal(torch.as_tensor(idle.outputs), torch.eye(2))


def test_inputs_weigh_as_much_as_their_gradients() -> None:
    """A token whose gradient is three times as large counts nine times."""

    def score(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        sizes = torch.tensor([3.0, 1.0])
        return toy_score(model, batch, generator) * sizes

    ids = torch.tensor([[0, 1], [1, 1]])
    batch = Batch(ids, torch.ones_like(ids), torch.zeros(2), np.arange(2))
    found = FisherFactors(Toy, {"reader": (3, 2)}, lambda: [batch], score, 10**6).of("reader")
    weighted, plain = torch.diag(torch.tensor([9.0, 4.0])), torch.diag(torch.tensor([1.0, 4.0]))

    torch.testing.assert_close(found.inputs, damped(weighted, plain))


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("rank", [1, 4])
def test_the_correction_is_the_best_of_its_rank_under_both_factors(
    shape: tuple[int, int], rank: int
) -> None:
    """L^-T [L^T R S]_r S^-1, in float64 with a full SVD."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    weight, lost = drawn(*shape), 0.3 * drawn(*shape)
    inputs, outputs = (
        m @ m.T / len(m) + torch.eye(len(m)) for m in map(drawn, shape[::-1], shape[::-1])
    )
    lower = torch.linalg.cholesky(outputs)
    a, b = starts._correction(weight, weight - lost, Factors(inputs, lower), rank)

    values, vectors = torch.linalg.eigh(inputs.double())
    root = vectors @ values.sqrt().diag() @ vectors.T
    seen = lower.double().T @ lost.double() @ root
    u, s, vt = torch.linalg.svd(seen, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.inv(root)
    expected = torch.linalg.inv(lower.double().T) @ best
    torch.testing.assert_close((b @ a).double(), expected, rtol=0.01, atol=0.005)


def test_directions_of_two_answers_are_exact() -> None:
    logits = torch.tensor([[1.5, -0.5], [0.0, 3.0]])
    p = logits.softmax(-1)
    change = torch.tensor([[0.3, 0.1], [-0.2, 0.4]])
    generator = torch.Generator().manual_seed(0)
    moved = projected(logits, generator) - 0
    slope = torch.autograd.functional.jvp(lambda z: frozen(z, logits), logits, change)[1]
    expected = ((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).sqrt()

    assert moved.shape == (2,)
    torch.testing.assert_close(slope.abs(), expected)


def frozen(z: Tensor, at: Tensor) -> Tensor:
    """`projected` with its direction taken at `at`."""
    p = at.softmax(-1)
    root = p.prod(-1, keepdim=True).sqrt()
    return (z * torch.cat((root, -root), -1)).sum(-1)


def test_directions_of_many_answers_have_the_right_mean_square() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, change = torch.randn(2, 1, 5, generator=generator)
    many = logits.expand(20_000, 5).clone().requires_grad_()
    projected(many, generator).sum().backward()
    assert many.grad is not None
    squares = (many.grad * change).sum(-1).square()
    p = logits.softmax(-1)
    expected = float((p * change**2).sum() - (p * change).sum() ** 2)

    assert float(squares.mean()) == pytest.approx(expected, rel=0.05)


@pytest.fixture(params=["classification", "language-modelling"])
def context(request: pytest.FixtureRequest, bert_folder: Path, llama_folder: Path) -> TrialContext:
    kind: TaskKind = request.param
    return make_context({"classification": bert_folder}.get(kind, llama_folder), kind, RECIPE)


def test_a_trial_that_makes_the_factors_draws_as_others_do(context: TrialContext) -> None:
    run = TrialRun(context, uniform(context.inventory, 16, 4), SEED)
    run.advance(16)
    reference, allocation = run.reference(), mixed(context.inventory)
    states = []
    for made in (False, True):
        fresh = replace(reference, corrections=Corrections())
        if made:
            formats = {name: [c.format] for name, c in allocation.choices.items() if c.rank}
            deque(context.make_corrections(fresh, formats), maxlen=0)
            made_before = fresh.corrections.made
        trial = TrialRun(context, allocation, SEED, reference=fresh)
        states.append((trial.randomness.states, trial.advance(0)))
    (first, second), reports = zip(*states, strict=True)

    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert reports[0].divergence == reports[1].divergence
    assert fresh.corrections.made == made_before > 0
    assert not any(factors._held for factors in context._factors.values())


def test_factors_are_summed_in_bfloat16_as_nearly(context: TrialContext) -> None:
    """The passes round by a 256th, and so do the products that are summed."""
    run = TrialRun(context, uniform(context.inventory, 16, 4), SEED)
    run.advance(16)
    reference = run.reference()
    narrow = replace(context, recipe=replace(context.recipe, cpu_dtype="bfloat16"))
    for name in (target.name for target in context.inventory.targets):
        one, other = (of.factors(reference).of(name) for of in (context, narrow))
        for whole, rounded in ((one.inputs, other.inputs), (one.outputs, other.outputs)):
            assert whole is not None and rounded is not None
            assert (whole - rounded).norm() < 0.02 * whole.norm()
            assert not torch.equal(whole, rounded)


def test_starts_by_what_answers_notice_are_nearer(context: TrialContext) -> None:
    """Than those by the inputs alone, over sentences that neither has seen."""
    run = TrialRun(context, uniform(context.inventory, 16, 4), SEED)
    run.advance(16)
    reference, allocation = run.reference(), uniform(context.inventory, 2, 4)
    fisher = context.factors(reference)
    divergences = []
    for even in (False, True):
        fresh = replace(reference, corrections=Corrections())
        if even:
            inputs = {name: Factors(context.moments[name]) for name in fisher._sizes}
            context._factors[fresh.checksum].of = inputs.__getitem__  # type: ignore[method-assign]
        divergences.append(TrialRun(context, allocation, SEED, reference=fresh).advance(0))
    ours, theirs = (report.divergence for report in divergences)

    assert ours is not None
    assert theirs is not None
    assert ours < 0.9 * theirs


def test_scores_of_text_count_predicted_tokens_alone(llama_folder: Path) -> None:
    context = make_context(llama_folder, "language-modelling", RECIPE)
    batch = next(context.batches(context.parts.scored))
    scores = answer_scores(context.base, batch, torch.Generator().manual_seed(0))
    places = batch.places
    assert places is not None
    last = replace(batch, places=places[-1:], targets=batch.targets[-1:])
    fewer = answer_scores(context.base, last, torch.Generator().manual_seed(0))

    assert scores.shape == fewer.shape == (len(batch.input_ids),)
    assert scores.all()
    assert fewer.nonzero().flatten().tolist() == [len(fewer) - 1]
