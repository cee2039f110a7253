"""Shows a study that another process runs, from its log."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from search_spaces.fixed import FIXED
from tune.flags import Form
from tune.report.facts import inventory_of
from tune.report.progress import Progress, Subject
from tune.report.screen import render, without_ends
from tune.study.config import StudyConfig, load_study_file
from tune.study.events import LOG_NAME, Event, Started, check_version, decode_timed
from tune.study.lock import is_held
from tune.study.state import StudyState

# Between looks at the log; and without a new event, between looks whether anybody still works on
# the study.
LOOK_SECONDS, IDLE_SECONDS = 0.5, 5.0


def watch(folder: Path, console: Console, form: Form) -> bool:
    """Show a study until nobody works on it any longer; tell whether anybody did.

    Raises:
        ValueError: No study.
    """
    content = load_study_file(folder, flag="--watch", any_version=True)
    config, log = StudyConfig.from_json(content["config"]), _Tail(folder / LOG_NAME)
    state, held = StudyState(inventory_of(content["inventory"]).names), is_held(folder)
    past = list(log.new())
    size = len(FIXED) if config.space == "matrix" else 1 if config.space in FIXED else config.budget
    progress = Progress(console, Subject(config=config, size=size), form)
    for logged, event in past:
        state.apply(event)
        progress.learn(logged or 0.0, event, state)
    if form == "json":
        _print(log.lines, console)
    if not held:
        if form == "shown":
            now = past[-1][0] if past and past[-1][0] is not None else time.time()
            console.print(render(without_ends(progress.show(state)), now))
        return False
    if form == "shown":
        progress.show(state)
    with progress:
        _follow(folder, log, state, progress, form)
    return True


def _print(lines: list[str], console: Console) -> None:
    for line in lines:
        print(line, file=console.file, flush=True)


def _follow(folder: Path, log: "_Tail", state: StudyState, progress: Progress, form: Form) -> None:
    """Show new events until there are none and nobody holds the study."""
    last = time.monotonic()
    while True:
        for _, event in log.new():
            state.apply(event)
            if form != "json":
                progress(event, state)
            last = time.monotonic()
        if form == "json":
            _print(log.lines, progress.console)
        if time.monotonic() - last > IDLE_SECONDS:
            if not is_held(folder):
                return
            last = time.monotonic()
        time.sleep(LOOK_SECONDS)


class _Tail:
    """Reads what is appended to a log, line by line.

    Attributes:
        lines: Those that were read last.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self.lines: list[str] = []

    def new(self) -> Iterator[tuple[float | None, Event]]:
        """Yield the events since the last time, each after its own."""
        content = b""
        if self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        self.lines = whole.decode("utf-8").splitlines()
        for line in self.lines:
            logged, event = decode_timed(line)
            if isinstance(event, Started):
                check_version(self._path, event.version)
            yield logged, event
