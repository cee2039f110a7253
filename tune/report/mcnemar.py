"""McNemar's test between any two confirmed runs of a classification study."""

import csv
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path

from scipy.stats import binomtest

from alrq_core.files import replaced
from tune.report.metrics import METRICS
from tune.study.state import StudyState, TrialState

FILE_NAME = "mcnemar.csv"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on the same test sequences.

    Attributes:
        run_a, run_b: Ids of the runs.
        trial_a, trial_b: The trials that they confirm.
        seed_a, seed_b: Of their training.
        only_a_right, only_b_right: Sequences that one run alone answered rightly.
        p_value: Two-sided, of this pair alone: not corrected for the number of pairs.
    """

    run_a: str
    run_b: str
    trial_a: str
    trial_b: str
    seed_a: int
    seed_b: int
    only_a_right: int
    only_b_right: int
    p_value: float


def exact_p_value(only_a_right: int, only_b_right: int) -> float:
    """Return the two-sided p-value of the exact McNemar test; 1 where the runs agree throughout.

    Where both runs are as good, each discordant sequence is right in either with probability 1/2
    (McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages"; here with the binomial distribution itself rather than its approximation).
    """
    discordant = only_a_right + only_b_right
    if not discordant:
        return 1.0
    return float(binomtest(only_a_right, discordant, 0.5).pvalue)


def compare_runs(state: StudyState) -> list[Comparison]:
    """Return a comparison for every pair of confirmed runs whose answers are right or wrong."""
    runs = [
        run
        for run in state.confirmed_runs()
        if run.test is not None and METRICS[run.test.metric].share
    ]
    return [_compare(a, b) for a, b in combinations(runs, 2)]


def write_mcnemar(folder: Path, state: StudyState) -> Path | None:
    """Write all comparisons into the study's folder; None, and no file, where there are none."""
    comparisons = compare_runs(state)
    if not comparisons:
        return None
    path = folder / FILE_NAME
    with replaced(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Comparison)])
        writer.writeheader()
        writer.writerows(asdict(comparison) for comparison in comparisons)
    return path


def _compare(a: TrialState, b: TrialState) -> Comparison:
    assert a.test is not None
    assert b.test is not None
    pairs = list(zip(a.test.scores, b.test.scores, strict=True))
    only_a, only_b = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    return Comparison(
        run_a=a.id,
        run_b=b.id,
        trial_a=a.source,
        trial_b=b.source,
        seed_a=a.seed,
        seed_b=b.seed,
        only_a_right=only_a,
        only_b_right=only_b,
        p_value=exact_p_value(only_a, only_b),
    )
