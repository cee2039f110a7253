"""The events of a study and the append-only log that is the only truth about it."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

from alrq_core.records import TestScore, TrialReport
from tune.study.predictions import with_predictions, write_predictions

# 3: losses of test sequences lie beside the log.
VERSION = 3
LOG_NAME = "events.jsonl"
ERROR_LENGTH = 120
# What `progressed` was called when it knew of codes and starts alone.
EARLIER = "calibrated"
Work = Literal["codes", "training", "starts", "table"]
Role = Literal["reference", "baseline", "screen", "search", "control", "confirm"]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run of the program begins, or resumes, on this study."""

    time: float
    budget: int
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A trial shall run.

    Attributes:
        trial: Its id.
        role: Why it runs.
        origin: Who chose it: `anchor`, a searcher's name, `fixed`, the fixed configuration that
            is the search's reference; or the trial that it confirms, or is a control of.
        seed: Of its training.
        allocation: `Allocation.encode`'s form.
        memory_bytes: Of the deployed model, as predicted.
        reference: The trial that it starts from; None to learn the task from nothing.
        labels: What started from a reference is trained on the labels, not towards its answers.
    """

    trial: str
    role: Role
    origin: str
    seed: int
    allocation: str
    memory_bytes: int
    reference: str | None = None
    labels: bool = False


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """How far work is that takes long and that no report tells of.

    Attributes:
        work: `codes` of the base weights, in all formats of the space; a trial's `training`, in
            steps; `starts` from a trial, module by module; or the search's `table`, in batches.
        made: What is there, that of earlier studies included.
        wanted: All of it.
        trial: Whose it is; None for codes, which are all trials'.
    """

    work: Work
    made: int
    wanted: int
    trial: str | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The search is over: how many runs are left to confirm what it found, controls among them.

    Attributes:
        started: Those that start from a reference.
        plain: Those that learn the task from nothing.
    """

    started: int
    plain: int


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A trial reached a rung."""

    trial: str
    rung: int
    report: TrialReport


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A confirmed trial was scored on the test split.

    Attributes:
        score: Its line has the metrics. What is known of each sequence is in a file of its own,
            which is there before the line: see `tune.study.predictions`.
    """

    trial: str
    score: TestScore


@dataclass(frozen=True, kw_only=True)
class Realised:
    """What a completed trial really is, from its receipt.

    Attributes:
        memory_bytes: Of the deployed model.
        trainable_parameters: Adapter and head.
        allocation: With AdaLoRA, the ranks that it ended with, as `Allocation.encode` writes them.
    """

    trial: str
    memory_bytes: int
    trainable_parameters: int
    allocation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Paused:
    """The scheduler lets a trial wait at a rung; its checkpoint is kept."""

    trial: str
    rung: int


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """A trial goes on from its rung, at once or after a pause, where rules let others pause."""

    trial: str
    rung: int


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The scheduler ended a trial early."""

    trial: str
    rung: int


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A trial ended with an error or a loss that is not finite."""

    trial: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A trial reached full fidelity."""

    trial: str


Ended = Stopped | Failed | Completed
Event = (
    Started
    | Proposed
    | Progressed
    | Planned
    | Reported
    | Tested
    | Realised
    | Paused
    | Promoted
    | Ended
)
_KINDS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in get_args(Event)}


def encode_event(event: Event) -> str:
    """Return the event as one line of JSON, without the line's end and a test's predictions."""
    content = asdict(event)
    if isinstance(event, Reported):
        content |= event.report.to_json()
        del content["report"]
    if isinstance(event, Tested):
        content = {"trial": event.trial, **event.score.to_json()}
        del content["scores"], content["losses"], content["predictions"]
    present = {k: v for k, v in content.items() if v is not None and v is not False}
    kind = {"event": type(event).__name__.lower()}
    return json.dumps(kind | present, separators=(",", ":"))


def logged_line(event: Event, logged: float) -> str:
    """Return an event as the log has it: with its time, in seconds since 1970."""
    return f'{encode_event(event)[:-1]},"logged":{logged:.2f}}}'


def decode_event(line: str) -> Event:
    """Return the event that `encode_event` wrote.

    Raises:
        ValueError: Not one of our lines.
    """
    return decode_timed(line)[1]


def decode_timed(line: str) -> tuple[float | None, Event]:
    """Return when an event was logged, in seconds since 1970, and the event.

    Raises:
        ValueError: Not one of our lines.
    """
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError(f"`event` must be a JSON object, got the line {line[:80]!r}.")
    return content.pop("logged", None), _decoded(content, line)


def _decoded(content: dict[str, Any], line: str) -> Event:
    if content.get("event") == EARLIER:
        trial = content.pop("starts_from", None)
        work = "codes" if trial is None else "starts"
        content |= {"event": "progressed", "work": work, "trial": trial}
    kind = _KINDS.get(content.pop("event", None))
    if kind is None:
        raise ValueError(f"`event` must be one of {', '.join(_KINDS)}, got the line {line[:80]!r}.")
    if kind is Reported:
        head = {key: content.pop(key) for key in ("trial", "rung")}
        return Reported(**head, report=TrialReport(**content))
    if kind is Tested:
        trial = content.pop("trial")
        score = TestScore(**{"f1": None, **content}, scores=(), losses=())
        return Tested(trial=trial, score=score)
    event: Event = kind(**content)
    return event


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:ERROR_LENGTH].removesuffix(".")


def check_version(path: Path, version: int) -> None:
    """Check that a log is of this release's version.

    Raises:
        ValueError: It isn't.
    """
    if version != VERSION:
        raise ValueError(
            f"`{path}` must be of version {VERSION}, which keeps losses of test sequences in files "
            f"beside it, got version {version}. Go on with the release that began the study, or "
            "start a new one."
        )


@dataclass
class EventLog:
    """A file to which events are only ever appended, by one process.

    Predictions lie in files beside it.

    Attributes:
        path: The file; made with its first event.
    """

    path: Path
    _file: IO[bytes] | None = field(default=None, repr=False)

    def read(self) -> Iterator[Event]:
        """Yield all events: see `timed`."""
        return (event for _, event in self.timed())

    def timed(self) -> Iterator[tuple[float | None, Event]]:
        """Yield all events, each after the time when it was logged. A last line that a crash cut
        short is left out.

        Raises:
            ValueError: The log is of another version, a line before the last is not an event, or
                its predictions are missing.
        """
        if not self.path.is_file():
            return
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                logged, event = decode_timed(line.decode("utf-8"))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"`{self.path}` must hold one event a line, got line {number} that is none "
                    f"({_short(error)}). Restore the line from a copy, or start a new study."
                ) from error
            if isinstance(event, Started):
                check_version(self.path, event.version)
            if isinstance(event, Tested):
                score = with_predictions(self.path.parent, event.trial, event.score)
                event = Tested(trial=event.trial, score=score)
            yield logged, event

    def append(self, event: Event) -> None:
        """Write one event, with the time, and wait until it and its predictions are on disk.

        The time, in seconds since 1970, is for readers of the file: no decision depends on it.
        """
        if isinstance(event, Tested):
            write_predictions(self.path.parent, event.trial, event.score)
        if self._file is None:
            self._file = self._open()
        self._file.write(f"{logged_line(event, time.time())}\n".encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        """Open the file for appending, with a line that a crash cut short removed."""
        if self.path.is_file():
            content = self.path.read_bytes()
            if content and not content.endswith(b"\n"):
                with self.path.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)
        return self.path.open("ab")
