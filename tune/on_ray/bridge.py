"""Connects a study to Ray Tune: its `Searcher` asks for trials, its scheduler hands in results."""

import itertools
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Self

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune.on_ray.nodes import NOTE_SECONDS
from tune.on_ray.trial_spec import TRIAL, TrialSpec
from tune.on_ray.workers import OUTCOME
from tune.study.study import Study

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class _Uncopied:
    """Keeps Ray from copying a study: copies would write to one log.

    Ray copies searchers and schedulers before it uses them, and pickles them for a restore that
    is never asked for, since everything is rebuilt from the log.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


class StudySearcher(_Uncopied, Searcher):
    """Gives Ray the study's next trial, in whatever phase it is."""

    def __init__(self, study: Study, places: Callable[[], int]) -> None:
        """Serve the trials of one study.

        Args:
            study: It proposes.
            places: Returns how many trials Ray shall have at a time.
        """
        super().__init__()
        self._study, self._places = study, places
        self._given: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's configuration, None to wait, or FINISHED."""
        if len(self._given) >= self._places():
            return None
        trial = self._study.next_trial()
        if trial is None:
            over = self._study.finished or self._study.halted is not None
            return Searcher.FINISHED if over else None
        self._given.add(trial_id)
        return TrialSpec(
            trial=trial.id,
            role=trial.role,
            allocation=trial.allocation.encode(),
            seed=trial.seed,
            reference=trial.reference,
            labels=trial.labels,
        ).to_config()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Have place for another: the scheduler has handed in all results."""
        self._given.discard(trial_id)


class StudyScheduler(_Uncopied, TrialScheduler):
    """Hands each result to the study and carries out its decision."""

    # The study decides after each report, so none may be held back.
    _supports_buffered_results = False

    def __init__(self, study: Study, waiting: Callable[[float], None]) -> None:
        """Serve one study.

        Args:
            study: It decides.
            waiting: Called now and then while no trial has a place to run, with the seconds so far.
        """
        super().__init__()
        self._study, self._waiting = study, waiting
        self._numbers: dict[str, int] = {}
        self._count = itertools.count()
        self._idle_since = self._told = time.monotonic()

    def on_trial_add(self, tune_controller: "TuneController", trial: Trial) -> None:
        """Note which came first; one that lost its worker is added again, as the last."""
        self._numbers[trial.trial_id] = next(self._count)

    def on_trial_result(
        self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]
    ) -> str:
        """Return whether the trial goes on."""
        decision = self._study.take(trial.config[TRIAL], result.pop(OUTCOME))
        return TrialScheduler.CONTINUE if decision == "continue" else TrialScheduler.STOP

    def on_trial_complete(
        self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]
    ) -> None:
        """Hand in a result that Ray took for the last one."""
        self.on_trial_result(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: "TuneController", trial: Trial) -> None:
        """Fail a trial whose worker was lost more often than it is restarted.

        Tune calls this too where it starts the trial again: it has given it this status before.
        A trial that waits for the worker of an earlier one, which is lost, it would not start
        again.
        """
        if trial.status == Trial.ERROR:
            return
        if trial.status == Trial.PENDING and self._study.try_again(trial.config[TRIAL]):
            return
        error = trial.get_error()
        reason = " ".join(str(error).split())[:300] if error else "no reason given"
        self._study.fail(trial.config[TRIAL], f"worker lost: {reason}")

    def on_trial_remove(self, tune_controller: "TuneController", trial: Trial) -> None:
        """Do nothing: an interrupted trial stays unfinished in the log and is resumed."""

    def choose_trial_to_run(self, tune_controller: "TuneController") -> Trial | None:
        """Return a trial that waits for a worker, oldest first."""
        live: Collection[Trial] = tune_controller.get_live_trials()
        self._look(live)
        waiting = (trial for trial in live if trial.status == Trial.PENDING)
        return min(waiting, key=lambda trial: self._numbers[trial.trial_id], default=None)

    def _look(self, trials: Collection[Trial]) -> None:
        """Tell where trials wait and none runs; Tune asks for one at least ten times a second."""
        now = time.monotonic()
        statuses = {trial.status for trial in trials}
        if Trial.RUNNING in statuses or Trial.PENDING not in statuses:
            self._idle_since = self._told = now
        elif now - self._told >= NOTE_SECONDS:
            self._told = now
            self._waiting(now - self._idle_since)

    def debug_string(self) -> str:
        """Return the name of the scheduler."""
        return type(self).__name__
