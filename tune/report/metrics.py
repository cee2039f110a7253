"""How metrics are told."""

from collections.abc import Mapping
from dataclasses import dataclass

from alrq_core.records import TrialReport


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: In words.
        task: What the hub calls the tasks that have it.
        share: Whether it is a share, told in per cent and its differences in points; a perplexity
            is told as it is, lower ones are better, and its differences are per cent of it.
    """

    name: str
    task: str
    share: bool = True

    @property
    def unit(self) -> str:
        """Of differences."""
        return "points" if self.share else "%"

    @property
    def scale(self) -> int:
        """What a value is multiplied with to be told."""
        return 100 if self.share else 1

    @property
    def title(self) -> str:
        """Of a column or an axis."""
        return f"test {self.name}{' (%)' if self.share else ''}"

    @property
    def better(self) -> str:
        """Which values are the better ones."""
        return "higher" if self.share else "lower"

    def number(self, value: float) -> str:
        """Return a value in digits."""
        return f"{100 * value:.1f}" if self.share else f"{value:.2f}"

    def told(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{self.number(value)}{' %' if self.share else ''}"


# In the order in which they are told: where answers must match, perplexity is known too.
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(name="accuracy", task="text-classification"),
    "exact_match": Metric(name="exact match", task="text-generation"),
    "perplexity": Metric(name="perplexity", task="text-generation", share=False),
}


def metric_of(report: TrialReport) -> str:
    """Return the name of the metric that a report has."""
    return next(name for name in METRICS if getattr(report, name) is not None)


def digits_beside(interval: tuple[float, float] | None, margin: float) -> int:
    """Return the digits after the point with which the lower end of an interval is seen to be
    above the margin, or below it.
    """
    low = -margin if interval is None else interval[0]
    above = low > -margin
    for digits in range(1, 9):
        told = float(f"{low:.{digits}f}")
        if told != -margin and (told > -margin) == above:
            return digits
    return 1
