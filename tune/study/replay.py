"""Hands the search of an earlier run of the program to the searcher."""

from collections.abc import Iterable

from tune.search.proposer import Proposer
from tune.study.events import Ended, Event, Proposed, Reported
from tune.study.state import StudyState


def replay_search(events: Iterable[Event], state: StudyState, proposer: Proposer) -> None:
    """Let a new proposer take in all trials of the search, in the order of their begins and ends.

    Args:
        events: All of the study.
        state: Made from them.
        proposer: Has seen no trial yet.
    """
    searched = {trial.id: trial for trial in state.trials.values() if trial.searched}
    for event in events:
        if isinstance(event, Proposed) and event.trial in searched:
            proposer.adopt(searched[event.trial].tried)
        elif isinstance(event, Reported | Ended) and event.trial in searched:
            trial = searched[event.trial]
            # A start is judged by its first report, all others by how they ended.
            if isinstance(event, Ended) or trial.reference is not None:
                proposer.tell(searched.pop(trial.id).tried)
    for trial in searched.values():
        proposer.tell(trial.tried)
