"""Shows a study's progress: a live screen in a terminal, plain lines or JSON anywhere else."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live

from search_spaces.costs import format_bytes
from search_spaces.spaces import SEARCHED
from tune.flags import Form
from tune.report.metrics import metric_of
from tune.report.pace import DOES, Pace, Phase
from tune.report.screen import PLOT_HEIGHT, WIDTH, Moment, duration, moment, render
from tune.study.config import StudyConfig
from tune.study.events import (
    Completed,
    Event,
    Failed,
    Planned,
    Progressed,
    Reported,
    Role,
    Started,
    Stopped,
    logged_line,
)
from tune.study.finalists import REFERENCE_TRIAL
from tune.study.state import STATUSES, UNENDED, StudyState

# Lines of a screen beside its plot, and reports by which throughput is told.
OTHER_LINES, WINDOW = 18, 40
# A study of many trials is not looked at anew for each event.
MANY, PAUSE_SECONDS = 200, 1.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What progress is shown of.

    Attributes:
        config: Of the study.
        size: Trials of the search, or configurations of a fixed space.
    """

    config: StudyConfig
    size: int

    @property
    def fixed(self) -> bool:
        """Whether the space is a fixed one."""
        return self.config.space not in SEARCHED


class Progress:
    """A listener that prints. Use it as a context manager around the study.

    Attributes:
        console: Where it prints.
    """

    def __init__(
        self,
        console: Console,
        subject: Subject,
        form: Form = "shown",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare to follow a study.

        Args:
            console: A terminal for a screen, or anything else for plain lines.
            subject: The study.
            form: What is printed: `quiet` for nothing but failures, `json` for an event a line.
            clock: Seconds since 1970.
        """
        self.console = console
        self._subject, self._form, self._clock = subject, form, clock
        self._pace = Pace(subject.config, subject.size, subject.fixed)
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._moment: Moment | None = None
        self._phases: list[Phase] = []
        self._phases_at: float | None = None
        self._live: Live | None = None
        if console.is_terminal and form == "shown":
            self._live = Live(
                console=console,
                get_renderable=self._view,
                refresh_per_second=2,
                vertical_overflow="crop",
            )

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event, state: StudyState) -> None:
        """Show one event."""
        now = self._clock()
        self.learn(now, event, state)
        if self._form == "json":
            print(logged_line(event, now), file=self.console.file, flush=True)
            return
        if self._live is not None:
            self._look(now, state)
        important = isinstance(event, Failed)
        plain = self._live is None and self._form == "shown"
        if (important or plain) and (line := self._line(event, state, now)) is not None:
            self.tell(line)

    def learn(self, now: float, event: Event, state: StudyState) -> None:
        """Take in an event without showing it."""
        self._pace.take(now, event, state)
        if isinstance(event, Started):
            self._times.clear()
        if isinstance(event, Reported):
            self._times.append(now)

    def show(self, state: StudyState) -> Moment:
        """Show, on a screen, what is known by now; return it."""
        now = self._clock()
        self._moment = moment(self._subject.config, self._pace, state, now, self._per_minute(now))
        return self._moment

    def tell(self, line: str) -> None:
        """Print a line that belongs to no event, above what is shown live."""
        if self._form == "json":
            return
        console = self.console if self._live is None else self._live.console
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _look(self, now: float, state: StudyState) -> None:
        if self._stale(None if self._moment is None else self._moment.time, now, state):
            self.show(state)

    def _stale(self, seen: float | None, now: float, state: StudyState) -> bool:
        """Whether a study is to be looked at anew: at each event while it has few trials."""
        return seen is None or len(state.trials) <= MANY or now - seen >= PAUSE_SECONDS

    def _view(self) -> RenderableType:
        """Return the screen; called by a thread of its own, which must not read the state."""
        if self._moment is None:
            return ""
        height = max(3, min(PLOT_HEIGHT, self.console.height - OTHER_LINES))
        return Constrain(render(self._moment, self._clock(), height), WIDTH)

    def _per_minute(self, now: float) -> float | None:
        """Return the reports a minute, of the last so many."""
        if len(self._times) < 2:
            return None
        return 60 * (len(self._times) - 1) / max(1e-3, now - self._times[0])

    def _line(self, event: Event, state: StudyState, now: float) -> str | None:
        """Return an event in words; None for one that nobody needs to see."""
        if isinstance(event, Planned):
            return self._phase_line(state, now)
        if isinstance(event, Progressed):
            return self._progressed_line(event, state, now)
        if isinstance(event, Reported):
            trial = state.trials[event.trial]
            report, metric = event.report, metric_of(event.report)
            apart = "" if report.divergence is None else f"divergence {report.divergence:.4f}  "
            return (
                f"{event.trial:>9}  step {report.step:>5}  {apart}loss {report.loss:.4f}  "
                f"{metric} {getattr(report, metric):.4f}  {format_bytes(trial.memory_bytes)}"
            )
        if isinstance(event, Failed):
            return f"{event.trial:>9}  failed: {event.reason}"
        if isinstance(event, Stopped | Completed):
            word = "stopped" if isinstance(event, Stopped) else "completed"
            return (
                f"{event.trial:>9}  {word}  [{self._counts(state)}; {self._phase_line(state, now)}]"
            )
        return None

    def _progressed_line(self, event: Progressed, state: StudyState, now: float) -> str | None:
        if event.trial in (None, REFERENCE_TRIAL):
            return self._phase_line(state, now)
        if event.work == "training":
            return None
        does, unit = DOES[event.work]
        return f"{event.trial:>9}  {does}: {event.made} of {event.wanted} {unit}"

    def _phase_line(self, state: StudyState, now: float) -> str:
        """Return what is done now, how far it is, and when it ends."""
        if self._stale(self._phases_at, now, state):
            self._phases, self._phases_at = self._pace.phases(now, state), now
        phases = self._phases
        if not phases:
            return "begun"
        phase = phases[-1]
        amount = f": {phase.done} of {phase.total} {phase.unit}" if phase.total > 1 else ""
        left = phase.seconds_left
        end = "" if left is None else f", about {duration(left)} left"
        return f"{phase.title}{amount}{end}"

    def _counts(self, state: StudyState) -> str:
        role: Role = "baseline" if self._subject.fixed else "search"
        parts = ", ".join(f"{state.count([role], [one])} {one}" for one in STATUSES)
        ended = state.count([role]) - state.count([role], UNENDED)
        return f"{ended} of {self._subject.size} trials: {parts}"
