"""Reads back every result file of a short study, and fails where one contradicts another."""

import csv
import json
import sys
from pathlib import Path

import pyarrow.parquet


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
    sizes = {"proposed": 2000, "reported": 300, "tested": 300}
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
    trained = {trial for trial, role in roles.items() if role != "table"}
    check(len(trained) == len(roles) - 1, "one trial measured the visibility table")
    check(set(receipts) == trained, "every other trial has a receipt")
    check(len({json.dumps(receipts[t]["modules"]) for t in searched}) == budget, "all distinct")
    for event in events:
        if event["event"] == "proposed" and event["trial"] in trained:
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
        check(low <= entry["f1"] <= high, f"{entry['experiment']}: F1 inside its interval")
        check(len(entry["seeds"]) == 3, f"{entry['experiment']}: three seeds")
    evidence = json.loads((study / "evidence.json").read_text())
    compared = {c["control"]: c["seeds"] for c in evidence["comparisons"]}
    check(
        bool(compared) and {name.partition("-")[0] for name in compared} <= {"uniform", "random"},
        "the best has controls",
    )
    check(set(compared.values()) == {3}, "on three seeds each")
    files = ("front.json", "front.png", "study.json", "optuna.journal", "confirmation.json")
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
