"""What a study runs next: fixed configurations, the search, the confirmation of its best."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from alrq_core.sensitivity.measure import warm_allocation
from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes, uniform_of_bytes
from search_spaces.costs import memory_bytes
from search_spaces.fixed import BASELINES, fixed_allocation, unavailable
from search_spaces.spaces import Space
from tune.search.proposer import Proposer
from tune.search.searchers import NEED_TABLE
from tune.study.events import Proposed
from tune.study.state import StudyState, TrialState

CONFIRM_SEEDS = 3
MAX_FINALISTS = 3
CONTROLS = ("uniform", "random")
# Id of the trial that measures the visibility table.
TABLE = "visibility"


@dataclass
class Plan:
    """Chooses the next trial of a study from its state.

    Attributes:
        space: Of the search.
        state: Kept up to date by the study.
        proposer: Optuna's side.
        budget: Trials of the search.
        anchors: Uniform allocations that are tried first, at most.
        seed: Of every trial of the search.
        max_memory_bytes: Limit on proposals.
        deadline: Time, as of `time.monotonic`, after which the search proposes nothing.
        searcher: Its name, for the log.
    """

    space: Space
    state: StudyState
    proposer: Proposer
    budget: int
    anchors: int
    seed: int
    max_memory_bytes: int | None
    deadline: float | None
    searcher: str

    def next(self) -> Proposed | None:
        """Return the next trial; None while it depends on running ones, or at the end."""
        first = self._table() or self._baseline() or self._search()
        return first or self._control() or self._confirmation()

    @property
    def search_closed(self) -> bool:
        """Whether no more trials of the search will be proposed."""
        return self.late or len(self.state.of_role("search")) >= self.search_size

    @property
    def late(self) -> bool:
        """Whether the time of the search is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def search_size(self) -> int:
        """Trials of the search: the budget, and none in a fixed space."""
        return 0 if self.space.fixed else self.budget

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing is left to run. Proposes nothing."""
        if self.state.with_status("running") or self.state.with_status("paused"):
            return False
        if not self.search_closed:
            return False
        return not (self._baseline() or self._control() or self._confirmation())

    def finalists(self) -> list[TrialState]:
        """Return the trials to confirm: the baselines, and the best of the front.

        Of the front these are the smallest allocations whose validation loss is within one standard
        error of the better baseline's, and the one of the lowest loss; where fewer are that near,
        those nearest to it. Losses are those that the searcher's model expects, where it has one.
        The one of the lowest observed loss goes with them: in 20 replayed studies the better of it
        and the one that was expected to be lowest beat the latter by 0.006 to 0.013.
        """
        baselines = [t for t in self.state.of_role("baseline") if t.status == "completed"]
        expected = self.proposer.expected_losses()
        front = self.state.front(expected)
        if not front:
            return baselines
        losses = {t.id: t.reports[-1].loss for t in (*baselines, *front)} | expected
        count = min(MAX_FINALISTS, max(2, self.budget // 10))
        best = min(front, key=lambda t: losses[t.id])
        reference = min([*baselines, best], key=lambda t: losses[t.id])
        limit = losses[reference.id] + reference.reports[-1].loss_standard_error
        others = [trial for trial in front if trial is not best]
        near = [trial for trial in others if losses[trial.id] <= limit]
        far = sorted((t for t in others if losses[t.id] > limit), key=lambda t: losses[t.id])
        chosen = [best, *near[: count - 1], *far[: max(0, count - 1 - len(near))]]
        observed = min(self.state.front(), key=lambda t: t.reports[-1].loss)
        if observed not in chosen:
            chosen.append(observed)
        return [*baselines, *sorted(chosen, key=lambda trial: trial.memory_bytes)]

    def _table(self) -> Proposed | None:
        """Return the trial that measures the visibility table: it goes first, since the search
        waits for it.
        """
        if self.search_closed or self.searcher not in NEED_TABLE or TABLE in self.state.trials:
            return None
        return self._proposed(TABLE, "table", "table", self.seed, warm_allocation(self.space))

    def _baseline(self) -> Proposed | None:
        for name, allocation in baselines(self.space).items():
            if name not in self.state.trials:
                # On the first of the fresh seeds: nothing chose it, so it needs no other for that.
                return self._proposed(name, "baseline", "fixed", self.seed + 1, allocation)
        return None

    def _search(self) -> Proposed | None:
        table = self.state.trials.get(TABLE)
        if self.search_closed or (table is not None and table.status == "running"):
            return None
        number = len(self.state.of_role("search"))
        trial = f"t{number + 1:03d}"
        anchors = self.space.anchors(self.anchors, self.max_memory_bytes)
        if number < len(anchors):
            return self._proposed(trial, "search", "anchor", self.seed, anchors[number])
        allocation = self.proposer.propose(trial)
        return self._proposed(trial, "search", self.searcher, self.seed, allocation)

    def _control(self) -> Proposed | None:
        """Return an allocation of the smallest finalist's bytes that no search has found."""
        if not self.search_closed or self._unended_search():
            return None
        chosen = [trial for trial in self.finalists() if trial.role == "search"]
        if not chosen:
            return None
        smallest = chosen[0]
        generator = Random(f"{self.seed}-{smallest.id}")
        controls = (
            uniform_of_bytes(self.space, smallest.memory_bytes),
            random_of_bytes(self.space, smallest.memory_bytes, generator),
        )
        for name, allocation in zip(CONTROLS, controls, strict=True):
            # A finalist that is uniform itself needs no control of that kind.
            known = allocation in [trial.allocation for trial in chosen]
            if name not in self.state.trials and not known:
                return self._proposed(name, "control", smallest.id, self.seed + 1, allocation)
        return None

    def _confirmation(self) -> Proposed | None:
        if not self.search_closed:
            return None
        sources = self.finalists()
        if self._unended_search():
            # Who the others are isn't known yet.
            sources = [source for source in sources if source.role == "baseline"]
        controls = self.state.of_role("control")
        sources += [control for control in controls if control.status == "completed"]
        for repeat in range(CONFIRM_SEEDS):
            for source in sources:
                if repeat == 0 and source.test is not None:
                    continue
                trial = f"{source.id}-s{repeat + 1}"
                if trial not in self.state.trials:
                    seed = self.seed + 1 + repeat
                    return self._proposed(trial, "confirm", source.id, seed, source.allocation)
        return None

    def _unended_search(self) -> bool:
        """Tell whether finalists may still change."""
        unended = [*self.state.with_status("running"), *self.state.with_status("paused")]
        return any(trial.role in ("baseline", "search") for trial in unended)

    def _proposed(
        self, trial: str, role: str, origin: str, seed: int, allocation: Allocation
    ) -> Proposed:
        return Proposed(
            trial=trial,
            role=role,  # type: ignore[arg-type]
            origin=origin,
            seed=seed,
            allocation=allocation.encode(),
            memory_bytes=memory_bytes(allocation, self.space.inventory),
        )


def baselines(space: Space) -> Mapping[str, Allocation]:
    """Return the fixed configurations that a study runs, as far as its backend has them."""
    if space.fixed:
        return space.points
    inventory, formats = space.inventory, space.formats
    return {
        name: fixed_allocation(name, inventory, formats)
        for name in BASELINES
        if unavailable(name, inventory, formats) is None
    }
