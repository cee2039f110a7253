"""What one screen of at most 100 columns says of a study, at one moment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search_spaces.costs import format_bytes
from tune.report.failing import failure_groups
from tune.report.pace import Pace, Phase
from tune.study.config import StudyConfig
from tune.study.schedulers import rungs_of
from tune.study.state import StudyState, TrialState

WIDTH, BAR_WIDTH, PLOT_WIDTH, PLOT_HEIGHT = 100, 22, 62, 8
# Trials that are named as running; and failures.
NAMED, GROUPS = 6, 3
# Of a divergence on an axis of logarithms.
LEAST = 1e-6
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A study at one moment, as far as a screen shows it.

    Attributes:
        time: Of the moment, in seconds since 1970.
        title: Which study.
        phases: So far, the last is the present one.
        rungs: Step and trials that came so far.
        points: Bytes, what is minimised, and whether it is on the front, of each judged trial.
        best: The front's end of least loss, in words.
        objective: What is minimised.
        running: Trials that run, in words.
        per_minute: Reports; None before the second.
        failures: In words.
        works: Whether anybody works on it.
    """

    time: float
    title: str
    phases: Sequence[Phase]
    rungs: Sequence[tuple[int, int]]
    points: Sequence[tuple[int, float, bool]]
    best: str
    objective: str
    running: str
    per_minute: float | None
    failures: Sequence[str]
    works: bool = True


def moment(
    config: StudyConfig, pace: Pace, state: StudyState, time: float, per_minute: float | None
) -> Moment:
    """Return what a screen shows of a study now."""
    searched = state.of_role("search")
    judged = [trial for trial in searched if trial.judged is not None]
    front = {trial.id for trial in state.front()}
    started = any(trial.reference is not None for trial in searched)
    objective = "divergence" if started else "validation loss"
    counts = [
        (step, sum(len(trial.reports) > rung for trial in searched))
        for rung, step in enumerate(rungs_of(config.recipe, "search", started))
    ]
    return Moment(
        time=time,
        title=f"{config.name}: {config.model} on {config.task}, space {config.space}",
        phases=pace.phases(time, state),
        rungs=[(step, count) for step, count in counts if searched],
        points=[(t.memory_bytes, _objective(t), t.id in front) for t in judged],
        best=_best(judged, front, objective),
        objective=objective,
        running=_running(state.with_status("running")),
        per_minute=per_minute,
        failures=[group.line for group in failure_groups(state)[:GROUPS]],
    )


def _objective(trial: TrialState) -> float:
    assert trial.judged is not None
    return trial.judged.objective


def _best(judged: Sequence[TrialState], front: set[str], objective: str) -> str:
    found = [trial for trial in judged if trial.id in front]
    if not found:
        return ""
    best = min(found, key=_objective)
    return (
        f"least: {best.id}, {objective} {_objective(best):.4f} at {format_bytes(best.memory_bytes)}"
    )


def _running(trials: Sequence[TrialState]) -> str:
    named = [f"{t.id} ({f'step {t.last.step}' if t.last else 'start'})" for t in trials[:NAMED]]
    more = f" and {len(trials) - NAMED} more" if len(trials) > NAMED else ""
    return ", ".join(named) + more


def render(shown: Moment, now: float, height: int = PLOT_HEIGHT) -> Group:
    """Return a moment as a screen, some time later.

    Args:
        shown: The moment.
        now: Seconds since 1970: bars' ends come nearer while nothing is told.
        height: Of the plot, in lines.
    """
    parts: list[RenderableType] = [
        Text(shown.title, overflow="ellipsis", no_wrap=True),
        _phases(shown, now),
    ]
    if shown.rungs:
        parts.append(_ladder(shown.rungs))
    if shown.points:
        parts.append(Text(f"Best front so far ({shown.best})"))
        parts.append(Text(plot(shown.points, shown.objective, PLOT_WIDTH, height)))
    pace = "" if shown.per_minute is None else f"{shown.per_minute:.1f} reports a minute; "
    what = "running" if shown.works else "unfinished"
    parts.append(Text(f"{pace}{what}: {shown.running or 'nothing'}", overflow="ellipsis"))
    parts += [Text(line, style="red") for line in shown.failures]
    return Group(*parts)


def _phases(shown: Moment, now: float) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(5):
        table.add_column(no_wrap=True)
    for phase in shown.phases:
        present = phase is shown.phases[-1]
        over = phase.total > 0 and phase.done >= phase.total
        left = phase.seconds_left if present and not over else None
        if left is not None:
            left = max(0.0, left - (now - shown.time))
        amount = f"{phase.done} of {phase.total} {phase.unit}" if phase.total > 1 else ""
        bar = ProgressBar(
            total=phase.total or None,
            completed=phase.done,
            width=BAR_WIDTH,
            pulse=not phase.total,
            animation_time=now,
        )
        mark = "+" if over else ">" if present else " "
        ends = "" if left is None else f"about {duration(left)} left"
        table.add_row(mark, phase.title, bar, amount, ends)
    return table


def _ladder(rungs: Sequence[tuple[int, int]]) -> Table:
    table, most = Table.grid(padding=(0, 1)), max(count for _, count in rungs)
    for _ in range(3):
        table.add_column(no_wrap=True)
    for step, count in rungs:
        bar = "=" * round(BAR_WIDTH * count / max(1, most))
        table.add_row(f"  step {step:>5}", bar, f"{count}")
    return table


def plot(points: Sequence[tuple[int, float, bool]], name: str, width: int, height: int) -> str:
    """Return trials by size and loss as lines of text, both on logarithms: `o` on the front."""
    xs = [math.log(size) for size, _, _ in points]
    ys = [math.log(max(loss, LEAST)) for _, loss, _ in points]
    low, high = (min(xs), min(ys)), (max(xs), max(ys))
    cells = [[" "] * width for _ in range(height)]
    for x, y, (_, _, on_front) in sorted(zip(xs, ys, points, strict=True), key=lambda p: p[2][2]):
        across = _place(x, low[0], high[0], width)
        down = height - 1 - _place(y, low[1], high[1], height)
        cells[down][across] = "o" if on_front else "."
    top, bottom = (f"{math.exp(edge):.3g}" for edge in (high[1], low[1]))
    edge = max(len(top), len(bottom), len(name))
    names = [top.rjust(edge), *[" " * edge] * (height - 2), bottom.rjust(edge)]
    names[height // 2] = name.rjust(edge) if height > 2 else names[height // 2]
    lines = [f"{label} |{''.join(row)}" for label, row in zip(names, cells, strict=True)]
    first, last = (format_bytes(math.exp(edge)) for edge in (low[0], high[0]))
    lines.append(f"{' ' * edge} +{'-' * width}")
    lines.append(f"{' ' * edge}  {first}{last.rjust(width - len(first))}")
    return "\n".join(lines)


def _place(value: float, low: float, high: float, places: int) -> int:
    return 0 if high <= low else round((value - low) / (high - low) * (places - 1))


def duration(seconds: float) -> str:
    """Return a time for people: seconds, minutes, or hours and minutes."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds // HOUR:.0f} h {seconds % HOUR // MINUTE:.0f} min"


def without_ends(shown: Moment) -> Moment:
    """Return a moment of a study that nobody works on: nothing has an end to wait for."""
    phases = [replace(phase, seconds_left=None) for phase in shown.phases]
    return replace(shown, phases=phases, per_minute=None, works=False)
