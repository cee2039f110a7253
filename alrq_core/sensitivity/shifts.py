"""How far each format and rank of each module moves a reference's answers.

Embeddings are tried; all else is known to first order.

With the answers' probabilities p, a change d of the logits moves them by the divergence
d^T (diag(p) - p p^T) d / 2, up to second order. That matrix is the mean of u u^T over directions u
that `projected` draws, so that half the mean square of u^T d over sequences is the divergence: of d
only one number a sequence has to be known, and it is linear in the errors of the weights. One
backward pass gives it for every error of every module.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext
from alrq_core.data.gradients import collect_gradients
from alrq_core.models.structure import tied_head
from alrq_core.sensitivity.table import ModuleVisibility, VisibilityTable
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import Format
from search_spaces.spaces import Space

# Of all sequences together, where they are drawn: their mean square is then off by a twelfth.
LEAST_DIRECTIONS = 300
Found = TypeVar("Found")
# Work that tells how much of it is done, of how much, before each part.
Steps = Generator[tuple[int, int], None, Found]
# Module name -> format -> choices of ranks x sequences, or x directions of sequences.
Shifts = dict[str, dict[Format, Tensor]]
# Module name -> each format with the error of its weight, out x in, and the halves of its
# correction, largest x in and out x largest.
Errors = Callable[[str], Iterator[tuple[Format, Tensor, Tensor | None, Tensor | None]]]


def answer_shifts(
    context: TrialContext, space: Space, reference: Reference, embeddings: bool = True
) -> Steps[Shifts]:
    """Yield how many batches are done, of how many; return how far each choice of a space moves
    the reference's answers, sequence by sequence.

    Half the mean square of a row is the divergence that this choice alone brings about, and of a
    sum over modules that of all of them together. A start counts as it is made: codes of the base
    and the best correction of its rank. Over the sequences on which starts are scored.

    Args:
        context: Has the base and the text.
        space: Formats and ranks.
        reference: What trials start from.
        embeddings: Whether they count too, or linear layers alone.
    """
    # Before the gradients: the corrections need a backward pass of their own.
    deque(context.make_corrections(reference, space.adapted_formats), maxlen=0)
    model = context.tuned_model(reference)
    inventory = space.inventory
    names = {target.name: target.name for target in inventory.targets}
    if embeddings:
        names |= {module.name: module.name for module in inventory.embeddings}
        tied = tied_head(context.base, reference.allocation.choices)
        if tied is not None:
            names[tied] = inventory.embeddings[0].name
    # Directions of two answers are exact; of others so many are drawn that their mean is.
    tokens = context.parts.scored
    draws = 1 if len(context.task.label_names) == 2 else -(-LEAST_DIRECTIONS // len(tokens))
    # As many at once as a batch has room for, since copies of a sequence share their products.
    copies = min(draws, max(1, context.recipe.prepared_tokens // int(tokens.lengths.max())))
    turns = -(-draws // copies)
    errors = partial(_errors, context, space, reference)
    found = _Collector(errors, space, copies, turns * copies * len(tokens))
    generator = torch.Generator().manual_seed(0)
    score = partial(context.answer_scores, generator=generator)
    batches = sum(1 for _ in context.batches(tokens, copies))
    for turn in range(turns):
        for number, batch in enumerate(context.batches(tokens, copies)):
            yield turn * batches + number, turns * batches
            draw = turn * copies + np.arange(len(batch.rows)) % copies
            found.columns = draw * len(tokens) + batch.rows
            collect_gradients(model, names, [batch], found, score)
    return found.shifts


def visibility_table(
    context: TrialContext, space: Space, reference: Reference, resolution: float
) -> VisibilityTable:
    """Return what `measure_table` does, at once."""
    return finished(measure_table(context, space, reference, resolution))


def finished(steps: Steps[Found]) -> Found:
    """Return what work in steps comes to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Found = end.value
            return found


def measure_table(
    context: TrialContext, space: Space, reference: Reference, resolution: float
) -> Steps[VisibilityTable]:
    """Yield how many batches are done, of how many; return the divergence that each choice alone
    brings about.

    Of linear layers to first order. Embeddings are few, have no adapter that would keep their
    errors small, and are what all else reads: what they lose is measured. First order saw 0.027
    nats in 2 bits of SmolLM2's, which are tied to its head, where 0.076 are lost: the table's best
    of 50 MB took them and was at 0.238, and is at 0.044 with what was measured.

    Effects of modules are not independent, since most of them make answers less sure: of a whole
    allocation the sum is a third to a quarter of the divergence, and orders allocations all the
    same.

    Args:
        context: Has the base and the text.
        space: Formats and ranks, to be searched.
        reference: What trials start from.
        resolution: See `VisibilityTable`.

    Raises:
        ValueError: The space is fixed.
    """
    if space.fixed:
        raise ValueError(
            f"`--space` must be a searched one for a visibility table, got {space.name}. "
            "Use joint, bits or rank."
        )
    started = time.perf_counter()
    tried = [(e.name, of) for e in space.inventory.embeddings for of in space.formats_of(e.name)]
    steps = answer_shifts(context, space, reference, embeddings=False)
    shifts, batches = yield from _followed(steps, len(tried))
    modules = {}
    for name in (target.name for target in space.inventory.targets):
        ranks = _ranks(space, name)
        modules[name] = ModuleVisibility(
            ranks=ranks,
            damage={
                stored: tuple(float(f"{half:.6g}") for half in rows.square().mean(dim=1) / 2)
                for stored, rows in shifts[name].items()
            },
        )
    lost: dict[str, dict[Format, tuple[float]]] = {}
    for number, (name, stored) in enumerate(tried):
        yield batches + number, batches + len(tried)
        lost.setdefault(name, {})[stored] = (_lost(context, reference, name, stored),)
    for name, damage in lost.items():
        modules[name] = ModuleVisibility(ranks=_ranks(space, name), damage=damage)
    return VisibilityTable(
        modules=modules,
        resolution=resolution,
        sequences=len(context.parts.scored),
        seconds=round(time.perf_counter() - started, 2),
    )


def _followed(steps: Steps[Found], more: int) -> Steps[tuple[Found, int]]:
    """Yield how far work is that so many other parts follow; return its result, and its parts."""
    parts = 0
    while True:
        try:
            done, parts = next(steps)
        except StopIteration as end:
            return end.value, parts
        yield done, parts + more


def _lost(context: TrialContext, reference: Reference, name: str, stored: Format) -> float:
    """Return the divergence of a reference from itself with a module without adapter stored so."""
    if stored == reference.allocation.choices[name].format:
        return 0.0
    allocation = Allocation({**reference.allocation.choices, name: Choice.of(stored, 0)})
    return TrialRun(context, allocation, reference.seed, reference=reference).divergence()


def _ranks(space: Space, name: str) -> tuple[int, ...]:
    """Return the module's ranks, with 0 for the error as it is."""
    return tuple(sorted({0, *space.ranks.get(name, (0,))}))


def _errors(
    context: TrialContext, space: Space, reference: Reference, name: str
) -> Iterator[tuple[Format, Tensor, Tensor | None, Tensor | None]]:
    """Yield what each format of a module leaves of the reference, and the correction of it."""
    tuned = context.tuned_weight(reference, name)
    largest = max(space.ranks.get(name, (0,)))
    for stored in space.formats_of(name):
        weight = context.dequantised(name, stored)
        a = b = None
        if largest:
            a, b = context.correction(reference, name, stored, tuned)
        yield stored, weight - tuned, a, b


class _Collector:
    """Turns inputs and gradients of modules into shifts.

    Attributes:
        columns: Where the sequences of the batch that runs are counted.
        shifts: Of all modules so far.
    """

    def __init__(self, errors: Errors, space: Space, copies: int, width: int) -> None:
        self.columns = np.empty(0, dtype=np.int64)
        self._errors, self._copies, self._width = errors, copies, width
        self._ranks = {name: _ranks(space, name) for name in space.inventory.names}
        self.shifts: Shifts = {}

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """Add those of a linear layer; see `Collector`."""
        # Copies of a sequence stand together, and differ in their gradients alone.
        copies = self._copies if len(x) == len(self.columns) else 1
        x, by_copy = x[::copies], gradient.unflatten(0, (-1, copies))
        slopes = by_copy.float().flatten(2)
        for stored, error, a, b in self._errors(name):
            moves = (x @ error.T.to(x)).float().flatten(1)
            moved = (slopes @ moves.unsqueeze(2)).flatten()
            mended = None
            if a is not None and b is not None:
                narrow = (by_copy @ b.to(gradient)).float() * (x @ a.T.to(x)).unsqueeze(1)
                mended = narrow.sum(dim=2).cumsum(dim=2).flatten(0, 1)
            self._take(name, stored, moved, mended)

    def add_lookup(self, name: str, ids: Tensor, gradient: Tensor) -> None:
        """Add those of an embedding; see `Collector`."""
        for stored, error, _, _ in self._errors(name):
            moved = (gradient.float() * error[ids]).sum(dim=(1, 2))
            self._take(name, stored, moved, None)

    def _take(self, name: str, stored: Format, moved: Tensor, mended: Tensor | None) -> None:
        """Add the shifts of one batch, at each rank."""
        if len(moved) != len(self.columns):
            # Which rows are whose is not known, as of an expert's: as if each had its share.
            moved = moved.sum().expand(len(self.columns)) / len(self.columns) ** 0.5
            mended = None if mended is None else mended.sum(dim=0).expand(len(self.columns), -1)
        ranks = self._ranks[name]
        total = self.shifts.setdefault(name, {}).setdefault(
            stored, torch.zeros(len(ranks), self._width)
        )
        for place, rank in enumerate(ranks):
            at_rank: Any = moved
            if rank and mended is not None:
                at_rank = moved + mended[:, min(rank, mended.shape[1]) - 1]
            total[place, self.columns] += at_rank.cpu()
