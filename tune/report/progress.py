"""Shows a study's progress: a live view in a terminal, plain lines anywhere else."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search_spaces.costs import average_rank, format_bytes
from search_spaces.inventory import Inventory
from search_spaces.spaces import Space
from tune.study.events import (
    Calibrated,
    Completed,
    Ended,
    Event,
    Failed,
    Paused,
    Proposed,
    Reported,
    Role,
    Stopped,
)
from tune.study.state import UNENDED, Status, StudyState, TrialState

FRONT_ROWS = 8


class Progress:
    """A listener that prints. Use it as a context manager around the study.

    Attributes:
        console: Where it prints.
    """

    def __init__(self, console: Console, space: Space, search_size: int, metric: str) -> None:
        """Prepare to follow a study.

        Args:
            console: A terminal, or anything else for plain lines.
            space: What is searched; of a fixed one its configurations are counted.
            search_size: Trials of the search.
            metric: `accuracy`, `perplexity` or `exact_match`.
        """
        self.console = console
        self._size = len(space.points) or search_size
        self._role: Role = "baseline" if space.fixed else "search"
        self._metric = metric
        self._inventory = space.inventory
        self._started = time.monotonic()
        self._settled_before: int | None = None
        # Time and number when codes, or starts from a reference, were first told of.
        self._first_told: dict[str | None, tuple[float, int]] = {}
        self._prepared = ""
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event, state: StudyState) -> None:
        """Show one event."""
        if self._settled_before is None:
            new = 1 if isinstance(event, Ended | Paused) else 0
            self._settled_before = self._settled(state) - new
        line = self._line(event, state)
        if self._live is not None:
            if line is not None and isinstance(event, Failed):
                self.tell(line)
            self._live.update(self._view(state), refresh=True)
        elif line is not None:
            self.tell(line)

    def tell(self, line: str) -> None:
        """Print a line that belongs to no event, above what is shown live."""
        console = self.console if self._live is None else self._live.console
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, event: Event, state: StudyState) -> str | None:
        """Return an event in words; None for one that nobody needs to see."""
        if isinstance(event, Proposed):
            return None
        self._prepared = self._prepared_line(event) if isinstance(event, Calibrated) else ""
        if isinstance(event, Calibrated):
            return self._prepared
        if isinstance(event, Reported):
            trial = state.trials[event.trial]
            report = event.report
            apart = "" if report.divergence is None else f"divergence {report.divergence:.4f}  "
            return (
                f"{event.trial:>9}  step {report.step:>5}  {apart}loss {report.loss:.4f}  "
                f"{self._metric} {getattr(report, self._metric):.4f}  "
                f"{format_bytes(trial.memory_bytes)}"
            )
        if isinstance(event, Failed):
            return f"{event.trial:>9}  failed: {event.reason}"
        if isinstance(event, Stopped | Completed):
            word = "stopped" if isinstance(event, Stopped) else "completed"
            return f"{event.trial:>9}  {word}  [{self._counts(state)}]"
        return None

    def _prepared_line(self, event: Calibrated) -> str:
        """Return how many are made, and how long the others take at this run's pace."""
        now = time.monotonic()
        since, before = self._first_told.setdefault(event.starts_from, (now, event.made))
        new = event.made - before
        left = (now - since) / new * (event.wanted - event.made) if new else 0.0
        end = f", ready in about {left:.0f} s" if new else ""
        if event.starts_from is not None:
            done = f"{event.made} of {event.wanted} modules"
            return f"making starts from {event.starts_from}: {done}{end}"
        return f"calibrating: {event.made} of {event.wanted} codes{end}"

    def _counts(self, state: StudyState) -> str:
        every: tuple[Status, ...] = ("completed", "stopped", "failed", "paused", "running")
        parts = ", ".join(f"{state.count([self._role], [one])} {one}" for one in every)
        ended = state.count([self._role]) - state.count([self._role], UNENDED)
        text = f"{ended} of {self._size} trials: {parts}"
        confirm = state.count(["confirm"])
        if confirm:
            done = confirm - state.count(["confirm"], ["running"])
            text += f"; confirmation: {done} runs done"
        left = self._seconds_left(state)
        return text + (f"; search ends in about {left / 60:.0f} min" if left else "")

    def _seconds_left(self, state: StudyState) -> float | None:
        """Return the time until the search ends, from this run's pace.

        Paused trials count like ended ones: half of them never go on, and those that do have their
        share of the time so far.
        """
        settled = self._settled(state)
        new = settled - (self._settled_before or 0)
        left = self._size - settled
        if new < 2 or left <= 0:
            return None
        return (time.monotonic() - self._started) / new * left

    def _settled(self, state: StudyState) -> int:
        return state.count([self._role]) - state.count([self._role], ["running"])

    def _view(self, state: StudyState) -> Group:
        table = Table(title="Best front so far", title_justify="left")
        for column in ("trial", "memory", "average rank", "validation loss", self._metric):
            table.add_column(column, justify="left" if column == "trial" else "right")
        front = state.front()
        for trial in front[:FRONT_ROWS]:
            table.add_row(*_row(trial, self._metric, self._inventory))
        more = f"and {len(front) - FRONT_ROWS} more" if len(front) > FRONT_ROWS else ""
        running = ", ".join(
            f"{trial.id} (step {trial.last.step if trial.last else 0})"
            for trial in state.with_status("running")
        )
        head = [Text(line) for line in (self._counts(state), f"running: {running}", self._prepared)]
        return Group(*head, table, Text(more))


def _row(trial: TrialState, metric: str, inventory: Inventory) -> tuple[str, ...]:
    report = trial.judged
    assert report is not None
    return (
        trial.id,
        format_bytes(trial.memory_bytes),
        f"{average_rank(trial.allocation, inventory):.1f}",
        f"{report.loss:.4f}",
        f"{getattr(report, metric):.4f}",
    )
