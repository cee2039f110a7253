"""Who reached which rung of a search, and who may go on from there."""

import math
from bisect import insort
from dataclasses import dataclass, field
from itertools import compress, islice
from operator import attrgetter

from tune.search.front import Point, in_order
from tune.study.schedulers import Scheduler, part
from tune.study.state import UNENDED, TrialState


@dataclass
class _Rung:
    """The trials that reported there, in the order of their proposals, and how rules see them."""

    trials: list[TrialState] = field(default_factory=list)
    points: dict[str, Point] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    passing: dict[bool, list[TrialState]] = field(default_factory=dict)


class Ladder:
    """Asks a scheduler once for all that has reported at a rung, and again when more has."""

    def __init__(self, scheduler: Scheduler, factor: int, capped: bool = False) -> None:
        """Start with nobody.

        Args:
            scheduler: Its rule.
            factor: Of how many trials about one goes on.
            capped: Whether those who have gone on count, so that just a part ever does, the best of
                those that wait. Else whoever is of the best part at some time may go on, as in Li
                et al. 2020, arXiv:1810.05934, algorithm 2. Of fronts, whose order changes with
                every trial, that was twice the part in searches of 50.
        """
        self._scheduler, self._factor, self._capped = scheduler, factor, capped
        self._rungs: list[_Rung] = []

    def place(self, trial: TrialState) -> None:
        """Take in what a trial of the search has reported, that it goes on from there or failed, or
        that its bytes are known better.
        """
        while len(self._rungs) < len(trial.reports):
            self._rungs.append(_Rung())
        for at, (rung, report) in enumerate(zip(self._rungs, trial.reports, strict=False)):
            goes_on = at < len(trial.reports) - 1 or report.step <= trial.promoted_step
            if self._capped and (trial.status == "failed" or goes_on):
                rung.passing.clear()
            if goes_on:
                rung.gone.add(trial.id)
            # As the search sees them: spread counts by the root of a divergence and by shares of
            # bytes.
            point = math.sqrt(max(0.0, report.objective)), math.log(trial.memory_bytes)
            if rung.points.get(trial.id) == point:
                continue
            if trial.id not in rung.points:
                insort(rung.trials, trial, key=attrgetter("number"))
            rung.points[trial.id] = point
            rung.passing.clear()

    def passing(self, rung: int, closing: bool) -> list[TrialState]:
        """Return the trials that may go on from a rung, of all that reached it, or of those that
        have not done so where they are capped.

        Args:
            rung: Its number.
            closing: Whether no others will follow.
        """
        if rung >= len(self._rungs):
            return []
        found = self._rungs[rung]
        if closing not in found.passing:
            points = [found.points[trial.id] for trial in found.trials]
            if self._capped:
                room = part(len(points), closing, self._factor) - len(found.gone)
                ordered = (found.trials[index] for index in in_order(points))
                waits = (t for t in ordered if t.id not in found.gone and t.status in UNENDED)
                found.passing[closing] = list(islice(waits, max(0, room)))
            else:
                passed = self._scheduler.passes(points, closing, self._factor)
                found.passing[closing] = list(compress(found.trials, passed))
        return found.passing[closing]
