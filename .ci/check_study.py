"""Reads back every result file of a short study, and fails where one contradicts another."""

import csv
import json
import sys
from pathlib import Path

import pyarrow.parquet

# Of everything that is confirmed after so few trials.
SEEDS = 3


def main(results: Path, name: str, budget: int) -> None:
    """Check the results of one study of the space `joint` on Rotten Tomatoes."""
    study = results / "studies" / name
    lines = (study / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    ends = [e["trial"] for e in events if e["event"] in {"completed", "stopped"}]
    proposed = [e["trial"] for e in events if e["event"] == "proposed"]
    check(sorted(ends) == sorted(proposed), "every trial ended once, none failed")
    searched = [e["trial"] for e in events if e.get("role") == "search"]
    check(len(searched) == budget, f"{budget} trials were searched")
    sizes = {"proposed": 2000, "reported": 500, "tested": 300}
    lengths = [
        (len(line), sizes[e["event"]])
        for line, e in zip(lines, events, strict=True)
        if e["event"] in sizes
    ]
    check(all(length <= limit for length, limit in lengths), "events are small")
    tested = {e["trial"] for e in events if e["event"] == "tested"}
    answers = {p.stem: pyarrow.parquet.read_table(p) for p in study.glob("predictions/*.parquet")}
    check(set(answers) == tested, "every run on the test split has its predictions")
    for event in (e for e in events if e["event"] == "tested"):
        right = answers[event["trial"]]["right"].to_pylist()
        value = sum(right) / len(right)
        check(abs(value - event["value"]) < 1e-9, f"{event['trial']}: accuracy of its predictions")

    receipts = {p.stem: json.loads(p.read_text()) for p in (study / "receipts").glob("*.json")}
    roles = {e["trial"]: e["role"] for e in events if e["event"] == "proposed"}
    check(list(roles.values()).count("reference") == 1, "one trial measured the visibility table")
    check(set(receipts) == set(roles), "every trial has a receipt")
    started = {e["trial"] for e in events if "reference" in e}
    of_one = {trial for trial, receipt in receipts.items() if receipt["start"]}
    check(of_one == started > set(searched), "what started from a reference says so")
    check(len({json.dumps(receipts[t]["modules"]) for t in searched}) == budget, "all distinct")
    for event in events:
        if event["event"] == "proposed":
            built = receipts[event["trial"]]["memory_bytes"]
            check(built == event["memory_bytes"], f"{event['trial']}: bytes as predicted")

    rows = pyarrow.parquet.read_table(study / "trials.parquet").to_pylist()
    check(len(rows) == sum(e["event"] == "reported" for e in events), "a row a report")
    overview = json.loads((results / "all_results.json").read_text())["results"]
    with (results / "experiment_summary.csv").open(encoding="utf-8") as file:
        summary = list(csv.DictReader(file))
    check({"B-FP", "B-Q4"} <= {entry["experiment"] for entry in overview}, "both baselines")
    check(len(summary) == len(overview), "a line a result")
    for entry in overview:
        low, high = entry["interval"]
        check(low <= entry["value"] <= high, f"{entry['experiment']}: value inside its interval")
        low, high = entry["f1_interval"]
        check(
            low - 1e-9 <= entry["f1"] <= high + 1e-9,
            f"{entry['experiment']}: F1 inside its interval",
        )
        check(len(entry["seeds"]) == SEEDS, f"{entry['experiment']}: {SEEDS} seeds")
    evidence = json.loads((study / "evidence.json").read_text())
    compared = {c["kind"]: c["seeds"] for c in evidence["comparisons"]}
    kinds = {"uniform", "random", "table", "nothing", "+"}
    check({"nothing", "+"} < set(compared) <= kinds, "a finalist has controls")
    for kind, seeds in compared.items():
        check(seeds == SEEDS, f"{kind}: {seeds} seeds")
    files = ("front.json", "report.html", "study.json", "optuna.journal", "confirmation.json")
    for file in (*files, "mcnemar.csv", "visibility.json"):
        check((study / file).stat().st_size > 0, f"{file} was written")
    check(any((study / "tensorboard").rglob("events.out.tfevents.*")), "TensorBoard logs")


def check(condition: bool, what: str) -> None:
    """Print what was checked, or end with it."""
    if not condition:
        sys.exit(f"check failed: {what}")
    print(f"ok: {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
