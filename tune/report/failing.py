"""Failed trials by reason, each with what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass

from tune.study.failures import words
from tune.study.state import StudyState

# What a reason holds, to what helps.
ADVICE: Mapping[str, str] = {
    "out of memory": "Plan for less: --device-memory or --max-training-memory with a smaller size, "
    "--gradient-checkpointing on, or a smaller --batch-size or --max-length.",
    "worker lost": "The process was ended from outside, most often by the system when memory ran "
    "out: give --device-memory a smaller size, and look at the system's log.",
    "loss became": "Training diverged: give a smaller --learning-rate, or --tune-learning-rate for "
    "what starts from a reference.",
    "diverged": "Training diverged: give a smaller --learning-rate, or --tune-learning-rate for "
    "what starts from a reference.",
    "the device failed": "Look at the driver's log (dmesg, nvidia-smi -q); the trials before it "
    "count.",
    "must share": "Give --storage, or an --output-dir that every node sees.",
    "No space left": "Make room on the disk, or move the study, and go on with --resume.",
    "gradient": "What was built did not train as asked: report it with the receipt of the trial.",
}
OTHERWISE = "Run one such trial from Python (docs/python.md) to see its traceback."


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Trials that failed for one reason.

    Attributes:
        reason: Of the first of them.
        trials: Their ids.
        advice: What to do.
    """

    reason: str
    trials: tuple[str, ...]
    advice: str

    @property
    def line(self) -> str:
        """All of it, for a terminal."""
        few = ", ".join(self.trials[:3]) + (", ..." if len(self.trials) > 3 else "")
        reason = self.reason.rstrip(".")
        return f"failed: {len(self.trials)} ({few}): {reason}. {self.advice}"


def failure_groups(state: StudyState) -> list[FailureGroup]:
    """Return the failed trials by reason, the commonest first; numbers in it don't count."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for trial in state.with_status("failed"):
        reason = trial.reason or "no reason given"
        groups.setdefault(words(reason), []).append((trial.id, reason))
    found = [
        FailureGroup(
            reason=members[0][1],
            trials=tuple(trial for trial, _ in members),
            advice=_advice(members[0][1]),
        )
        for members in groups.values()
    ]
    return sorted(found, key=lambda group: -len(group.trials))


def _advice(reason: str) -> str:
    return next((advice for part, advice in ADVICE.items() if part in reason), OTHERWISE)
