"""Reads every result file of a folder, of whatever study, into one list and one table."""

import csv
import json
from pathlib import Path
from typing import Any

from alrq_core.files import replaced, write_json
from tune.study.plan import COMPARATOR

RESULTS_VERSION = 1
SUMMARY_COLUMNS = (
    "experiment",
    "task",
    "model",
    "study",
    "seed",
    "max_memory_bytes",
    "trial",
    "metric",
    "value",
    "interval_low",
    "interval_high",
    "f1",
    "f1_low",
    "f1_high",
    "context_tokens",
    "stride_tokens",
    "validation_loss",
    "comparator",
    "difference",
    "difference_low",
    "difference_high",
    "average_bits",
    "average_rank",
    "memory_bytes",
    "target_bytes",
    "trainable_parameters",
    "train_seconds",
    "peak_memory_bytes",
    "seeds",
    "recommended",
)
# Without them nobody could tell what a result is of.
IDENTITY = ("experiment", "task", "model", "study", "trial", "metric", "value")
Entry = dict[str, Any]


def read_results(folder: Path) -> tuple[dict[Path, Entry], list[str]]:
    """Return the results in a folder by their files, and in words which files are none of ours."""
    entries, skipped = {}, []
    for path in sorted(folder.glob("results_*_*.json")):
        try:
            entries[path] = _read(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = str(error) or type(error).__name__
            skipped.append(f"{path}: no result of this release ({reason.splitlines()[0]})")
    return entries, skipped


def _read(path: Path) -> Entry:
    entry: Entry = json.loads(path.read_text(encoding="utf-8"))
    version = entry.get("version")
    if version != RESULTS_VERSION:
        raise ValueError(f"version {version}, not {RESULTS_VERSION}")
    absent = [name for name in IDENTITY if name not in entry]
    if absent:
        raise ValueError(f"without {', '.join(absent)}")
    _line(entry)
    return entry


def write_summary(folder: Path, entries: list[Entry]) -> None:
    """Write `all_results.json` and `experiment_summary.csv`."""
    write_json(folder / "all_results.json", {"version": RESULTS_VERSION, "results": entries})
    with (
        replaced(folder / "experiment_summary.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, SUMMARY_COLUMNS)
        writer.writeheader()
        writer.writerows(_line(entry) for entry in entries)


def _line(entry: Entry) -> Entry:
    low, high = entry["difference_interval"] or (None, None)
    f1_low, f1_high = entry.get("f1_interval") or (None, None)
    interval_low, interval_high = entry["interval"]
    extra = {
        "interval_low": interval_low,
        "interval_high": interval_high,
        "f1_low": f1_low,
        "f1_high": f1_high,
        # Earlier releases knew no other.
        "comparator": entry.get("comparator", COMPARATOR),
        "difference_low": low,
        "difference_high": high,
        "seeds": len(entry["seeds"]),
    }
    return {column: extra.get(column, entry.get(column)) for column in SUMMARY_COLUMNS}
