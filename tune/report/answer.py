"""What a study says, in a few sentences: which allocation, what it saves, how sure that is."""

from dataclasses import dataclass

from search_spaces.costs import format_bytes
from tune.report.confirmation import Confirmed
from tune.report.controls import evidence_lines
from tune.report.facts import Facts
from tune.report.figures.fronts import metric_name
from tune.report.ways_on import ways_on


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first thing that a report says.

    Attributes:
        headline: One sentence.
        points: The evidence for it, a sentence or two each.
        compared: How the finalist with controls does beside them, and which that is.
        names: What trials are called, and what they are.
        numbers: A few, each with what it is and what it stands beside.
        ways_on: What would change that nothing is recommended.
        caution: What must not be read into it.
    """

    headline: str
    points: tuple[str, ...]
    compared: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, str, str], ...]
    ways_on: tuple[str, ...]
    caution: tuple[str, ...]


def answer(facts: Facts) -> Answer:
    """Return what a study says, as far as it has come."""
    row, reference = facts.chosen, facts.reference
    points = [facts.text.replace(" *,", ",")]
    if row is not None and reference is not None:
        points += quality(facts, row, reference)
    ended = facts.recommended is None and facts.rows and facts.text.startswith("No recommendation:")
    sequences, limit = int(facts.splits["test"]), facts.config.max_memory_bytes
    ways = ways_on(facts.rows, facts.config.margin, limit, sequences) if ended else []
    return Answer(
        headline=_headline(facts, row, reference),
        points=tuple(points),
        compared=tuple(_compared(facts)),
        names=tuple(_names(facts)),
        numbers=tuple(_numbers(row, reference)) if row and reference else (),
        ways_on=tuple(ways),
        caution=tuple(_caution(facts)),
    )


def _headline(facts: Facts, row: Confirmed | None, reference: Confirmed | None) -> str:
    if facts.recommended is not None and row is not None and reference is not None:
        return (
            f"Use {row.trial}: {format_bytes(row.memory_bytes)} instead of "
            f"{format_bytes(reference.memory_bytes)}, {_at_most(row)}, within the margin of "
            f"{facts.config.margin:g}."
        )
    if not facts.rows:
        return "Nothing is confirmed yet, so nothing is recommended."
    if facts.text.startswith("No recommendation:"):
        role = "a control" if row is not None and row.role == "control" else "found by the search"
        best = f" What comes nearest is {row.trial}, {role}." if row is not None else ""
        return f"No allocation is recommended.{best}"
    return "The study has not ended: what follows may change."


def _at_most(row: Confirmed) -> str:
    """Return the largest loss that the interval leaves."""
    low = row.difference_interval[0] if row.difference_interval is not None else 0.0
    if low >= 0:
        return f"no worse than {row.comparator} at 95 % confidence"
    return f"at most {-low:.1f} {_unit(row)} worse than {row.comparator} at 95 % confidence"


def _compared(facts: Facts) -> list[str]:
    lines = evidence_lines([], facts.comparisons)
    if not lines:
        return []
    found = facts.comparisons[0].trial
    why = f"{found} has controls: before any test score it was expected to be as good as B-FP."
    if facts.recommended not in (None, found):
        why += f" For {facts.recommended} itself none were trained."
    return [why, *lines]


def _names(facts: Facts) -> list[tuple[str, str]]:
    """Return what the names of a study's allocations mean, as far as it has such."""
    known = {
        "B-FP": "LoRA of rank 8 on weights in 16 bits",
        "B-Q4": "LoRA of rank 8 on weights in 4 bits (NF4), which is QLoRA",
        "t...": "a trial of the search; -s1, -s2, ... are its fresh seeds",
        "uniform-": "the same bits and rank everywhere, of no fewer bytes",
        "random-": "bits and ranks drawn by chance, of no more bytes",
        "table-": "what the visibility table alone names, without any trial, of no more bytes",
        "nothing-": "the finalist's own bits and ranks, but learning the task from nothing",
        "B-FP+": "B-FP, trained as many steps longer as finalists are",
    }
    trials = [row.trial for row in facts.rows]
    return [
        (name, meaning)
        for name, meaning in known.items()
        if any(trial.startswith(name.removesuffix("...")) for trial in trials)
    ]


def quality(facts: Facts, row: Confirmed, reference: Confirmed) -> list[str]:
    """Return what an allocation saves and loses, in two sentences; none without a comparison."""
    if row.difference is None or row.difference_interval is None:
        return []
    low, high = row.difference_interval
    share = 100 * row.memory_bytes / reference.memory_bytes
    return [
        f"{row.trial} keeps {format_bytes(row.memory_bytes)}, {share:.0f} % of "
        f"{reference.trial}: {row.average_bits:.2f} bits a weight on average, scales included, and "
        f"LoRA of rank {row.average_rank:.1f} on average.",
        f"Over {len(row.seeds)} fresh seeds and {facts.splits['test']:,} test sequences, its "
        f"{metric_name(row).removeprefix('test ')} is {_value(row)} against {_value(reference)}: "
        f"{row.difference:+.1f} {_unit(row)}, between {low:+.1f} and {high:+.1f} at 95 % "
        "confidence (minus is worse).",
    ]


def _numbers(row: Confirmed, reference: Confirmed) -> list[tuple[str, str, str]]:
    low, high = row.difference_interval or (0.0, 0.0)
    saved = 1 - row.memory_bytes / reference.memory_bytes
    difference = "-" if row.difference is None else f"{row.difference:+.1f} {_unit(row)}"
    return [
        ("deployed", format_bytes(row.memory_bytes), f"{100 * saved:.0f} % less than 16-bit LoRA"),
        (
            f"to {reference.trial}, test {row.metric.replace('_', ' ')}",
            difference,
            f"95 % interval {low:+.1f} to {high:+.1f}",
        ),
        ("bits a weight", f"{row.average_bits:.2f}", "average, scales included"),
        ("LoRA rank", f"{row.average_rank:.1f}", "average over matrices"),
        (
            "peak while training",
            f"{row.peak_memory_bytes / 1e9:.1f} GB",
            f"{row.train_seconds:.0f} s a seed, highest of {len(row.seeds)}",
        ),
    ]


def _caution(facts: Facts) -> list[str]:
    """Return what a reader might take for granted and should not."""
    config = facts.config
    found = [
        f"All of this holds for {config.model} on {config.task} with this recipe: intervals count "
        "the luck of seeds and of test sequences, and nothing else.",
        "What the search saw (divergence, or validation loss of one seed) chose the finalists. It "
        "says less about quality than the test split does.",
        "Bytes are those of the deployed model. Training takes more: see below.",
    ]
    if facts.rows and any(row.role == "control" for row in facts.rows):
        found.append(
            "Controls (uniform, random, the visibility table's own best, other ways to train) were "
            "made to compare with. They are never recommended, however well they do."
        )
    return found


def _unit(row: Confirmed) -> str:
    return "%" if row.metric == "perplexity" else "points"


def _value(row: Confirmed) -> str:
    return f"{row.value:.2f}" if row.metric == "perplexity" else f"{100 * row.value:.1f} %"
