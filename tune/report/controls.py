"""What was worth its cost in a study, and whether its search beat allocations that nobody chose."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from alrq_core.sensitivity.table import VisibilityTable
from tune.report.confirmation import Confirmed
from tune.report.intervals import mean_interval
from tune.study.plan import COMPARATOR
from tune.study.state import StudyState, TrialState

# What a finalist is compared to, in words.
KINDS = {
    "uniform": "the uniform allocation of its size",
    "random": "the random allocation of its size",
    "table": "the allocation of its size that the visibility table alone names",
    "nothing": "itself, trained from nothing",
    "+": "the reference, trained as many steps longer",
}
UNSEARCHED = ("uniform", "random")
# Fewer order nothing.
MIN_TRIALS = 4
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well something orders trials as their final objectives do.

    Attributes:
        source: `visibility table`, or `step 50` for a rung.
        kendall: Rank correlation, Kendall's tau-b (1945), with ties; 1 for the same order.
        interval: Its 95 % interval, from trials drawn again; None where all draws are tied.
        trials: Completed trials of the search that were compared. They are what the scheduler let
            pass, which makes a rung look worse than it is.
    """

    source: str
    kendall: float
    interval: tuple[float, float] | None
    trials: int


@dataclass(frozen=True, kw_only=True)
class Changed:
    """How many answers of a configuration with the same seed two allocations change.

    After the flips of Dutta et al. 2024 (arXiv:2407.09141), which are between right and wrong: here
    one wrong answer for another counts too. No label's chance is in it, so that it tells
    allocations apart which no loss does.

    Attributes:
        comparator: The configuration.
        share, control_share: Of the test sequences.
        difference_interval: 95 % interval of the found one's share minus the control's.
    """

    comparator: str
    share: float
    control_share: float
    difference_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A found allocation beside one of the same bytes, or beside another way to train.

    Attributes:
        trial, control: Their ids.
        kind: Of the control: see `KINDS`.
        memory_bytes, control_bytes: Of them.
        loss, control_loss: Mean test loss of the seeds that both have.
        difference_interval: 95 % interval of the found one's loss minus the control's.
        seeds: That both have.
        changed: None without answers that are classes, and where the comparator lacks one of the
            seeds.
    """

    trial: str
    control: str
    kind: str
    memory_bytes: int
    control_bytes: int
    loss: float
    control_loss: float
    difference_interval: tuple[float, float]
    seeds: int
    changed: Changed | None

    @property
    def beaten(self) -> bool:
        """Whether the found one is shown to have the lower test loss."""
        return self.difference_interval[1] < 0

    @property
    def verdict(self) -> str:
        """What is shown of the found one, as the verb of a sentence."""
        low, high = self.difference_interval
        if high < 0:
            return "beats"
        return "is worse than" if low > 0 else "is not shown to differ from"


def agreements(state: StudyState, table: VisibilityTable | None) -> list[Agreement]:
    """Return how table and rungs order the completed trials of the search by their last losses."""
    done = [trial for trial in state.of_role("search") if trial.status == "completed"]
    if len(done) < MIN_TRIALS:
        return []
    final = [trial.reports[-1].loss for trial in done]
    found = []
    if table is not None:
        predicted = [table.predict(trial.allocation) for trial in done]
        found.append(_agreement("visibility table", predicted, final))
    for rung, report in enumerate(done[0].reports[:-1]):
        reported = [trial.reports[rung].objective for trial in done]
        found.append(_agreement(f"step {report.step}", reported, final))
    return found


def _agreement(source: str, values: Sequence[float], final: Sequence[float]) -> Agreement:
    pairs = np.array([values, final])
    generator = np.random.default_rng(0)
    drawn = [
        kendalltau(*pairs[:, generator.integers(0, len(final), len(final))]).statistic
        for _ in range(RESAMPLES)
    ]
    known = [value for value in drawn if np.isfinite(value)]
    low, high = np.quantile(known, (0.025, 0.975)) if known else (np.nan, np.nan)
    tau = float(kendalltau(*pairs).statistic)
    return Agreement(
        source=source,
        kendall=tau if np.isfinite(tau) else 0.0,
        interval=(float(low), float(high)) if known else None,
        trials=len(final),
    )


def comparisons(
    state: StudyState,
    rows: Sequence[Confirmed],
    found: TrialState | None,
    comparator: str = COMPARATOR,
) -> list[Comparison]:
    """Return how the finalist with controls compares to them.

    Args:
        state: All trials.
        rows: What was confirmed.
        found: The finalist; None where there is none.
        comparator: See `Confirmed`.
    """
    if found is None:
        return []
    runs: dict[str, dict[int, TrialState]] = {}
    for trial in state.confirmed_runs():
        runs.setdefault(trial.source, {})[trial.seed] = trial
    sizes = {row.trial: row.memory_bytes for row in rows}
    compared = []
    # An earlier run, of a smaller budget, may have left controls of another one.
    for control in state.of_role("control"):
        if control.origin != found.id and not control.labels:
            continue
        ours, theirs = runs.get(found.id, {}), runs.get(control.id, {})
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            continue
        losses = np.array([[_losses(run[seed]) for seed in seeds] for run in (ours, theirs)])
        compared.append(
            Comparison(
                trial=found.id,
                control=control.id,
                kind="+" if control.labels else control.id.partition("-")[0],
                memory_bytes=sizes[found.id],
                control_bytes=sizes[control.id],
                loss=float(losses[0].mean()),
                control_loss=float(losses[1].mean()),
                difference_interval=mean_interval(losses[0] - losses[1]),
                seeds=len(seeds),
                changed=_changed(comparator, runs, ours, theirs, seeds),
            )
        )
    return compared


def _changed(
    comparator: str,
    runs: Mapping[str, Mapping[int, TrialState]],
    ours: Mapping[int, TrialState],
    theirs: Mapping[int, TrialState],
    seeds: Sequence[int],
) -> Changed | None:
    """Return what two allocations change of the comparator's answers with the same seeds."""
    reference = runs.get(comparator, {})
    if not reference.keys() >= set(seeds):
        return None
    found = [[_answers(run[seed]) for seed in seeds] for run in (reference, ours, theirs)]
    if not all(answers for run in found for answers in run):
        return None
    answers = np.array(found)
    moved = (answers[1:] != answers[0]).astype(float)
    share, control_share = moved.mean(axis=(1, 2))
    return Changed(
        comparator=comparator,
        share=float(share),
        control_share=float(control_share),
        difference_interval=mean_interval(moved[0] - moved[1]),
    )


def _answers(trial: TrialState) -> tuple[int, ...]:
    assert trial.test is not None
    return trial.test.predictions


def _losses(trial: TrialState) -> tuple[float, ...]:
    assert trial.test is not None
    return trial.test.losses


def evidence_json(
    found: Sequence[Agreement], compared: Sequence[Comparison]
) -> Mapping[str, list[dict[str, Any]]]:
    """Return the JSON form of both."""
    return {
        "agreements": [asdict(one) for one in found],
        "comparisons": [asdict(one) | {"beaten": one.beaten} for one in compared],
    }


def evidence_lines(found: Sequence[Agreement], compared: Sequence[Comparison]) -> list[str]:
    """Return both in words."""
    lines = []
    if found:
        parts = [f"{one.source} {one.kendall:+.2f}{_in_brackets(one.interval)}" for one in found]
        lines.append(
            f"Order of the {found[0].trials} completed trials by validation loss, Kendall's tau: "
            f"{', '.join(parts)}."
        )
    for one in compared:
        difference, interval = one.loss - one.control_loss, _in_brackets(one.difference_interval, 4)
        lines.append(
            f"{one.trial} {one.verdict} {KINDS[one.kind]}: test loss (lower is better) "
            f"{one.loss:.4f} at {one.memory_bytes / 1e6:.2f} MB, {one.control_loss:.4f} at "
            f"{one.control_bytes / 1e6:.2f} MB; difference {difference:+.4f}{interval}, "
            f"{one.seeds} seeds.{_changed_in_words(one.changed)}"
        )
    unbeaten = [one.kind for one in compared if one.kind in UNSEARCHED and not one.beaten]
    if unbeaten:
        named = " and ".join(f"the {kind} allocation" for kind in unbeaten)
        lines.append(f"The search is not shown to beat {named}, which nobody searched for.")
    return lines


def _changed_in_words(changed: Changed | None) -> str:
    if changed is None:
        return ""
    share, other = 100 * changed.share, 100 * changed.control_share
    low, high = (100 * bound for bound in changed.difference_interval)
    return (
        f" It changes {share:.1f} % of {changed.comparator}'s answers, the other {other:.1f} %; "
        f"difference {share - other:+.1f}{_in_brackets((low, high), 1)} points."
    )


def _in_brackets(interval: tuple[float, float] | None, digits: int = 2) -> str:
    if interval is None:
        return ""
    low, high = (f"{bound:+.{digits}f}" for bound in interval)
    return f" [{low}, {high}]"
