"""The Fisher information of a model's answers about the weights of each module, as two factors.

K-FAC (arXiv:1503.05671, section 3): what a small change E of a weight does to the answers is, to
second order, half the mean square of g^T E x over tokens, with the module's inputs x and gradients
g of the answers, and the mean of its square is taken as a product of one moment of x and one of g.
Tokens that matter little have small gradients: inputs are weighted by the squares of theirs, and
gradients by those of their inputs, as the nearest product would (one step of the power iteration of
Van Loan and Pitsianis). Each factor is then damped, since few hundred answers tell little about a
thousand directions.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from alrq_core.data.encode import Batch
from alrq_core.data.gradients import collect_gradients
from alrq_core.data.losses import logits_of

# Of either factor, beside what was measured, by their traces.
DAMPING = 1.0


@dataclass(frozen=True, eq=False)
class Factors:
    """What a module's errors cost: tr(outputs^T E inputs E^T outputs) orders them.

    Attributes:
        inputs: Moment of the inputs that matter, in x in, float32.
        outputs: Lower Cholesky factor of the moment of the gradients, out x out; None where all
            directions count alike.
    """

    inputs: Tensor
    outputs: Tensor | None = None


def projected(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return logits times a direction whose outer product is diag(p) - p p^T in the mean.

    u = sqrt(p) e - p (sqrt(p) . e) with random signs e; of two answers, exactly sqrt(p q) (1, -1).

    Args:
        logits: ... x answers.
        generator: On the CPU.
    """
    p = logits.detach().float().softmax(dim=-1)
    if p.shape[-1] == 2:
        root = p.prod(dim=-1, keepdim=True).sqrt()
        return (logits.float() * torch.cat((root, -root), dim=-1)).sum(dim=-1)
    signs = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
    signed = p.sqrt() * signs
    direction = signed - p * signed.sum(dim=-1, keepdim=True)
    return (logits.float() * direction).sum(dim=-1)


def answer_scores(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Return a number a sequence: half its mean square after a change is the divergence of it."""
    answers = projected(logits_of(model, batch), generator)
    return batch.by_sequence(answers) * sqrt(batch.mean_answers)


class FisherFactors:
    """The factors of a model's modules, computed when they are asked for, a part at a time."""

    def __init__(
        self,
        model: Callable[[], nn.Module],
        sizes: Mapping[str, tuple[int, int]],
        batches: Callable[[], Iterable[Batch]],
        score: Callable[[nn.Module, Batch, torch.Generator], Tensor],
        held_bytes: int,
    ) -> None:
        """Compute nothing yet.

        Args:
            model: Builds the model, on its device.
            sizes: Its linear layers that are meant, each with out and in.
            batches: Returns the text, on that device.
            score: `answer_scores`.
            held_bytes: How much may be held; a single module may take more.
        """
        self._model, self._sizes = model, sizes
        self._batches, self._score, self._held_bytes = batches, score, held_bytes
        self._held: dict[str, Factors] = {}

    def of(self, name: str) -> Factors:
        """Return those of a module. The same directions are drawn for each part."""
        if name not in self._held:
            self._held = {}
            model, part = self._model(), self._part(name)
            sums = _Sums(part, next(model.parameters()).device)
            names, generator = {other: other for other in part}, torch.Generator().manual_seed(0)
            collect_gradients(
                model, names, self._batches(), sums, lambda m, b: self._score(m, b, generator)
            )
            self._held = {other: sums.factors(other) for other in part}
        return self._held[name]

    def _part(self, name: str) -> dict[str, tuple[int, int]]:
        """Return the modules that are computed along with one: it and those after it that fit."""
        part: dict[str, tuple[int, int]] = {}
        size = 0
        for other in list(self._sizes)[list(self._sizes).index(name) :]:
            rows, columns = self._sizes[other]
            size += 4 * (rows**2 + 2 * columns**2)
            if part and size > self._held_bytes:
                break
            part[other] = rows, columns
        return part


class _Sums:
    """Sums of outer products over the tokens that reach the answers; see `Collector`."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        self._of = {
            name: [torch.zeros(width, width, device=device) for width in (columns, columns, rows)]
            for name, (rows, columns) in sizes.items()
        }

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        # In the type of the pass: in bfloat16 products take a third of the time, and each batch's
        # is rounded on its own.
        x = x.reshape(-1, x.shape[-1]).to(gradient.dtype)
        gradient = gradient.reshape(-1, gradient.shape[-1])
        sizes = _lengths(gradient)
        reached = (sizes > 0).squeeze(1)
        x, gradient, sizes = x[reached], gradient[reached], sizes[reached]
        for total, rows in zip(self._of[name], (x, x * sizes, gradient * _lengths(x)), strict=True):
            if rows.dtype == total.dtype:
                total.addmm_(rows.T, rows)
            else:
                total.add_(rows.T @ rows)

    def add_lookup(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        raise AssertionError(f"{name} is an embedding")

    def factors(self, name: str) -> Factors:
        """Return those of a module, and let go of its sums.

        Where no answer depends on it, all directions count alike.
        """
        plain, weighted, outputs = self._of.pop(name)
        even = torch.eye(len(outputs), device=outputs.device)
        if not outputs.trace() > 0:
            return Factors(torch.eye(len(plain), device=plain.device), even)
        inputs = weighted.mul_(plain.trace() / weighted.trace()).add_(plain, alpha=DAMPING)
        damped = outputs.mul_(len(outputs) / outputs.trace()).add_(even, alpha=DAMPING)
        return Factors(inputs.mul_(len(inputs) / inputs.trace()), torch.linalg.cholesky(damped))


def _lengths(rows: Tensor) -> Tensor:
    """Return the length of each row, rows x 1."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32)
    return lengths.to(rows)
