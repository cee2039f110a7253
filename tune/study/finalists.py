"""Which trials of a study are confirmed with fresh seeds."""

from collections.abc import Mapping

from tune.study.state import StudyState, TrialState

# Of the standard error of the reference's validation loss, what may be lost. A fine-tune is surer
# than it is right: over 23 allocations of MiniLM the validation loss rose 1.9 times as much as the
# divergence, so that at a half the loss is one error above the reference's. The first comes first
# where few are confirmed, and has the controls.
TOLERANCES = (0.5, 0.7, 1.0, 0.25)
LEAST_FINALISTS = 2
# Trials of the search for each finalist.
TRIALS_EACH = 10
# The trial of the search's own reference, from which the visibility table is measured.
REFERENCE_TRIAL = "reference"


def finalists(state: StudyState, expected: Mapping[str, float], budget: int) -> list[TrialState]:
    """Return the trials to confirm: the baselines, and the best of the front by their bytes.

    Of the front these are the smallest allocations whose starts diverge from the reference by at
    most so many standard errors of its validation loss; where none is that near, the nearest. From
    nothing, what the validation loss is above the lowest one found counts for the divergence.

    Args:
        state: All trials.
        expected: Trial id to the objective that the model expects; empty where there is none.
        budget: Trials of the search.
    """
    baselines = [t for t in state.of_role("baseline") if t.status == "completed"]
    count = max(LEAST_FINALISTS, budget // TRIALS_EACH)
    near = [_within(state, expected, tolerance) for tolerance in TOLERANCES[:count]]
    chosen = {trial.id: trial for trial in near if trial is not None}
    return [*baselines, *sorted(chosen.values(), key=lambda trial: trial.memory_bytes)]


def compared_finalist(state: StudyState, expected: Mapping[str, float]) -> TrialState | None:
    """Return the finalist that has controls: the one that is expected to be as good as B-FP.

    It is chosen before any test score is known, so that no comparison is better than the truth for
    having been chosen by one.
    """
    return _within(state, expected, TOLERANCES[0])


def _within(
    state: StudyState, expected: Mapping[str, float], tolerance: float
) -> TrialState | None:
    """Return the smallest of the front that loses no more, or the one that loses least."""
    front = state.front(expected)
    if not front:
        return None
    values = {t.id: t.judged.objective for t in front if t.judged is not None} | dict(expected)
    reference, zero = state.trials.get(REFERENCE_TRIAL), 0.0
    if front[0].reference is None or reference is None or reference.last is None:
        baselines = [t for t in state.of_role("baseline") if t.status == "completed"]
        values |= {t.id: t.reports[-1].objective for t in baselines}
        reference = min([*baselines, *front], key=lambda t: values[t.id])
        zero = values[reference.id]
    limit = zero + tolerance * reference.reports[-1].loss_standard_error
    near = [trial for trial in front if values[trial.id] <= limit]
    return near[0] if near else min(front, key=lambda t: values[t.id])
