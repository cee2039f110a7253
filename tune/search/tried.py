"""What the search knows of one trial."""

from dataclasses import dataclass
from typing import Literal

from search_spaces.allocation import Allocation


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial of the search, as far as it has come.

    Attributes:
        id: Of the trial.
        allocation: What was trained.
        memory_bytes: Of the deployed model.
        ended: How it ended; None while it runs or waits.
        rungs: How many it has reached.
        step, objective: Of the one that it is judged by, see `TrialReport`; None before the first.
        reason: Why it failed.
    """

    id: str
    allocation: Allocation
    memory_bytes: int
    ended: Literal["completed", "stopped", "failed"] | None = None
    rungs: int = 0
    step: int | None = None
    objective: float | None = None
    reason: str | None = None
