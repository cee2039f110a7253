"""What the user hears while trials wait for a place to run."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial

from tests.simulated import make_study
from tune.on_ray import bridge
from tune.on_ray.bridge import NOTE_SECONDS, StudyScheduler, StudySearcher

RUNNING, PENDING, ENDED = Trial.RUNNING, Trial.PENDING, Trial.TERMINATED


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        pytest.param([(PENDING,)] * 7, [30, 60], id="waits"),
        pytest.param([(RUNNING, PENDING)] * 7, [], id="one runs"),
        pytest.param([(ENDED,)] * 7, [], id="nothing waits"),
        pytest.param([(PENDING,)] * 3 + [(RUNNING,)] + [(PENDING,)] * 4, [30], id="anew"),
    ],
)
def test_what_waits_is_told_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, statuses: list[tuple[str, ...]], expected: list[int]
) -> None:
    """Tune asks ten times a second; here every ten seconds."""
    now, told = [100.0], list[float]()
    monkeypatch.setattr(bridge.time, "monotonic", lambda: now[0])
    scheduler = StudyScheduler(cast(Any, None), told.append)
    for number in range(2):
        scheduler.on_trial_add(cast(Any, None), cast(Any, SimpleNamespace(trial_id=str(number))))
    for found in statuses:
        trials = [SimpleNamespace(status=status, trial_id=str(n)) for n, status in enumerate(found)]
        controller = SimpleNamespace(get_live_trials=lambda trials=trials: trials)
        chosen = scheduler.choose_trial_to_run(cast(Any, controller))
        assert (chosen is None) == (PENDING not in found)
        now[0] += NOTE_SECONDS / 3

    assert told == expected


def test_the_one_that_waits_longest_runs_first() -> None:
    scheduler = StudyScheduler(cast(Any, None), print)
    trials = [SimpleNamespace(status=PENDING, trial_id=name) for name in "cab"]
    for trial in trials:
        scheduler.on_trial_add(cast(Any, None), cast(Any, trial))
    controller = SimpleNamespace(get_live_trials=lambda: trials[::-1])

    assert scheduler.choose_trial_to_run(cast(Any, controller)) is trials[0]
    trials[0].status = RUNNING
    assert scheduler.choose_trial_to_run(cast(Any, controller)) is trials[1]


def test_one_that_lost_its_worker_comes_after_all_that_wait_and_before_what_comes() -> None:
    """Tune adds it once more."""
    scheduler = StudyScheduler(cast(Any, None), print)
    first, second, third = (SimpleNamespace(status=PENDING, trial_id=name) for name in "abc")
    for trial in (first, second, first, third):
        scheduler.on_trial_add(cast(Any, None), cast(Any, trial))
    left = [third, first, second]
    for expected in (second, first, third):
        controller = SimpleNamespace(get_live_trials=lambda: left)
        assert scheduler.choose_trial_to_run(cast(Any, controller)) is expected
        left.remove(expected)


def test_ray_gets_no_more_trials_than_have_places(tmp_path: Path) -> None:
    places, study = [3], make_study(tmp_path)
    searcher = StudySearcher(study, lambda: places[0])
    with closing(study.log):
        given = [searcher.suggest(str(number)) for number in range(5)]
        searcher.on_trial_complete("1")
        given += [searcher.suggest("5"), searcher.suggest("6")]
        places[0] = 1
        searcher.on_trial_complete("2")
        given.append(searcher.suggest("7"))

    assert [one is not None for one in given] == [*[True] * 3, False, False, True, False, False]
