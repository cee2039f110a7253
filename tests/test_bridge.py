"""What the user hears while trials wait for a place to run."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial

from tune.on_ray import bridge
from tune.on_ray.bridge import NOTE_SECONDS, StudyScheduler

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
    for found in statuses:
        trials = [SimpleNamespace(status=status) for status in found]
        controller = SimpleNamespace(get_trials=lambda trials=trials: trials)
        chosen = scheduler.choose_trial_to_run(cast(Any, controller))
        assert (chosen is None) == (PENDING not in found)
        now[0] += NOTE_SECONDS / 3

    assert told == expected
