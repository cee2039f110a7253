"""What a study says, in a few sentences: which allocation, what it saves, how sure that is."""

import re
from dataclasses import dataclass

from search_spaces.costs import format_bytes
from tune.report.confirmation import Confirmed
from tune.report.controls import evidence_lines
from tune.report.facts import Facts
from tune.report.metrics import METRICS, digits_beside
from tune.report.recommendation import LOST
from tune.report.ways_on import ways_on

ROLES = {
    "control": "a control",
    "search": "found by the search",
    "baseline": "a fixed configuration",
}
PLAIN = {"B-FP": "16-bit LoRA (B-FP)", "B-Q4": "4-bit LoRA (B-Q4)"}
WORDS = {
    "finalist": "a trial of the search's front that is trained again with fresh seeds",
    "reference": "the fine-tune of a seed from which trials of that seed start: B-FP, or B-Q4 "
    "where that does not fit",
    "start": "a trial before its first step: its codes, and the adapter that brings them nearest "
    "to the reference",
    "divergence": "how far answers are from the reference's (Kullback-Leibler, in nats)",
    "visibility table": "what each matrix's bits and rank alone would do to the reference's "
    "answers, measured once before the search",
    "rung": "a step at which trials are judged, and may be stopped",
    "control": "an allocation that is there to compare with, and never recommended",
    "margin": "what --margin says may be lost: 2 unless told",
    "receipt": "what was read back from the built model: classes, bits, bytes, checksums",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first thing that a report says.

    Attributes:
        headline: One sentence.
        points: The evidence for it, a sentence or two each.
        compared: How the finalist with controls does beside them, and which that is.
        others: The other finalists.
        names: Words and names, and what they mean.
        numbers: A few, each with what it is and what it stands beside.
        ways_on: What would change that nothing is recommended.
        caution: What must not be read into it.
    """

    headline: str
    points: tuple[str, ...]
    compared: tuple[str, ...]
    others: tuple[str, ...]
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
    ended = facts.recommended is None and LOST in facts.text
    sequences, limit = int(facts.splits["test"]), facts.config.max_memory_bytes
    ways = ways_on(facts.rows, facts.config.margin, limit, sequences) if ended else []
    return Answer(
        headline=_headline(facts, row, reference),
        points=tuple(points),
        compared=tuple(_compared(facts)),
        others=tuple(_others(facts)),
        names=tuple(_names(facts)),
        numbers=tuple(_numbers(facts, row, reference)) if row and reference else (),
        ways_on=tuple(ways),
        caution=tuple(_caution(facts)),
    )


def _headline(facts: Facts, row: Confirmed | None, reference: Confirmed | None) -> str:
    if facts.recommended is not None and row is not None and reference is not None:
        return (
            f"Use {row.trial}: {format_bytes(row.memory_bytes)} instead of "
            f"{format_bytes(reference.memory_bytes)}, "
            f"{_loss(row, facts.config.margin)}; the margin is "
            f"{facts.config.margin:g}."
        )
    if not facts.rows:
        return "Nothing is confirmed yet, so nothing is recommended."
    if facts.text.startswith("No recommendation:"):
        best = f" What comes nearest is {row.trial}, {ROLES[row.role]}." if row is not None else ""
        return f"No allocation is recommended.{best}"
    return "The study has not ended: what follows may change."


def _loss(row: Confirmed, margin: float) -> str:
    """Return how far an allocation is from the comparator: the estimate and its interval."""
    if row.difference is None or row.difference_interval is None:
        return f"not compared with {row.comparator}"
    digits = digits_beside(row.difference_interval, margin)
    about = _in_words(row, row.difference, digits)
    return (
        f"with a test {METRICS[row.metric].name} about {about} than with "
        f"{PLAIN.get(row.comparator, row.comparator)} ({_between(row, digits)} at 95 % confidence)"
    )


def _between(row: Confirmed, digits: int = 1) -> str:
    """Return the interval of a difference in words, from its better end."""
    assert row.difference_interval is not None
    low, high = row.difference_interval
    if low * high > 0:
        near, far = sorted((abs(low), abs(high)))
        return f"{near:.{digits}f} to {_in_words(row, far if low > 0 else -far, digits)}"
    return f"{_in_words(row, high, digits)} to {_in_words(row, low, digits)}"


def _in_words(row: Confirmed, difference: float, digits: int = 1) -> str:
    """Return a difference of the test metric in words: a perplexity that is better is lower."""
    metric = METRICS[row.metric]
    lower = (difference < 0) == metric.share
    return f"{abs(difference):.{digits}f} {metric.unit} {'lower' if lower else 'higher'}"


def _compared(facts: Facts) -> list[str]:
    lines = evidence_lines([], facts.comparisons)
    if not lines:
        return []
    found = facts.comparisons[0].trial
    why = (
        f"Controls were trained for {found}, which was expected to be as good as "
        f"{facts.comparator} before any test score was known."
    )
    if facts.recommended not in (None, found):
        why += f" None were for {facts.recommended}: of its size, nothing is compared."
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
        "B-Q4+": "B-Q4, trained as many steps longer as finalists are",
    }
    trials = [row.trial for row in facts.rows]
    named = [
        (name, meaning)
        for name, meaning in known.items()
        if any(
            re.match(r"t\d", trial) if name == "t..." else trial.startswith(name)
            for trial in trials
        )
    ]
    return [*named, *WORDS.items()] if named else []


def quality(facts: Facts, row: Confirmed, reference: Confirmed) -> list[str]:
    """Return what an allocation saves and loses, a sentence each; none without a comparison."""
    if row.difference is None or row.difference_interval is None:
        return []
    share = 100 * row.memory_bytes / reference.memory_bytes
    metric = METRICS[row.metric]
    lines = [
        f"{row.trial} keeps {format_bytes(row.memory_bytes)}, {share:.0f} % of "
        f"{reference.trial}, which is LoRA on the model in {reference.average_bits:.0f} bits.",
        f"Over {len(row.seeds)} fresh seeds and {facts.splits['test']:,} test sequences, its "
        f"{metric.name} is {metric.told(row.value)} against {metric.told(reference.value)} "
        f"({metric.better} is better).",
    ]
    longer = facts.against(f"{facts.comparator}+", row.trial)
    if longer is not None and longer.difference is not None and longer.difference_interval:
        lines.append(
            f"{row.trial} had some steps more than {facts.comparator}. Against {facts.comparator} "
            f"with as many more ({longer.comparator}) it is "
            f"{_in_words(longer, longer.difference)} ({_between(longer)})."
        )
    return lines


def _others(facts: Facts) -> list[str]:
    """Return the other finalists, which may be worth their bytes."""
    found = [row for row in facts.rows if row.role == "search" and row is not facts.chosen]
    return [
        f"{row.trial}: {format_bytes(row.memory_bytes)}, {_loss(row, facts.config.margin)}."
        for row in found
        if row.difference is not None
    ]


def _numbers(facts: Facts, row: Confirmed, reference: Confirmed) -> list[tuple[str, str, str]]:
    saved = 100 * (1 - row.memory_bytes / reference.memory_bytes)
    digits = digits_beside(row.difference_interval, facts.config.margin)
    difference = "-" if row.difference is None else _in_words(row, row.difference, digits)
    whole = 8 * row.memory_bytes / _parameters(facts)
    return [
        (
            "deployed",
            format_bytes(row.memory_bytes),
            f"{abs(saved):.0f} % {'less' if saved >= 0 else 'more'} than "
            f"{PLAIN.get(reference.trial, reference.trial)}",
        ),
        (
            f"test {METRICS[row.metric].name}, to {reference.trial}",
            difference,
            f"{_between(row, digits)} (95 %)" if row.difference_interval else "no interval",
        ),
        (
            "bits a weight, in blocks",
            f"{row.average_bits:.2f}",
            f"scales included; {whole:.2f} over all, adapters too",
        ),
        ("LoRA rank", f"{row.average_rank:.1f}", "average over matrices"),
        (
            "peak while training",
            f"{row.peak_memory_bytes / 1e9:.1f} GB",
            f"{reference.trial}: {reference.peak_memory_bytes / 1e9:.1f} GB; "
            f"{row.train_seconds:.0f} s a seed",
        ),
    ]


def _parameters(facts: Facts) -> int:
    """Return the parameters of the base model."""
    inventory = facts.inventory
    return sum(module.weights for module in inventory.modules) + inventory.other_parameters


def _caution(facts: Facts) -> list[str]:
    """Return what a reader might take for granted and should not."""
    config = facts.config
    found = [
        f"All of this holds for {config.model} on {config.task} with this recipe: intervals count "
        "the luck of seeds and of test sequences, and nothing else.",
        "What the search saw (divergence, or validation loss of one seed) chose the finalists. It "
        "says less about quality than the test split does.",
        "Bytes are those of the deployed model. Training takes more: see below. Nothing is said "
        "of speed.",
        "Intervals are paired over seeds and sequences (docs/results.md). Finalists are tested "
        "from the largest down until one fails, so that several are no likelier to pass by luck "
        "than one; an interval that ends near the margin is near it all the same.",
    ]
    if facts.rows and any(row.role == "control" for row in facts.rows):
        found.append(
            "Controls (uniform, random, the visibility table's own best, other ways to train) were "
            "made to compare with. They are never recommended, however well they do."
        )
    return found
