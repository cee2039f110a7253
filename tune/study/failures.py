"""Notices that trials fail one after another for one reason, which more trials won't mend."""

import re
from dataclasses import dataclass, field

from tune.study.events import Completed, Event, Failed, Paused, Stopped
from tune.study.state import StudyState

FAILURES = 3
# Each of them is another allocation. A finalist that diverges with all its seeds is its own matter.
ROLES = frozenset({"reference", "baseline", "screen", "search"})


@dataclass
class Streak:
    """The failures since the last trial that did well, as far as they have one reason.

    Attributes:
        reasons: Of the failed trials, in the order of their ends.
    """

    reasons: list[str] = field(default_factory=list)

    def take(self, event: Event, state: StudyState) -> None:
        """Take in one event. Once there are so many, nothing that still ran makes it undone."""
        if self.reason is not None:
            return
        if isinstance(event, Completed | Paused | Stopped):
            self.reasons.clear()
        elif isinstance(event, Failed) and state.trials[event.trial].role in ROLES:
            if self.reasons and words(self.reasons[-1]) != words(event.reason):
                self.reasons.clear()
            self.reasons.append(event.reason)

    @property
    def reason(self) -> str | None:
        """The one reason, after so many failures that the study should end; else None."""
        return self.reasons[-1] if len(self.reasons) >= FAILURES else None


def words(reason: str) -> str:
    """Return a reason without what tells trials apart: steps, bytes, names with a number."""
    return re.sub(r"\S*\d\S*", "", reason)
