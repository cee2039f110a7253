"""Trials an hour against the straightforward program, start-up, gaps between trials, memory.

    python benchmarks/throughput.py --pairs 3

Runs alrq and `benchmarks/naive.py` in turn, on the same allocations, steps and evaluated sentences,
with as many trials at once as there are cores, nothing stopped early. A rate is trials over the
whole time from the command on; alrq's ends with the last trial of its search, since the other
program confirms nothing. Its two fixed configurations count as trials, though they also score the
test split. Prints Markdown tables with 95 % intervals (Student's t over the pairs).

    python benchmarks/throughput.py --memory [-- flags of run_search.py]

Prints the highest proportional set size of all processes of a study, with one core and with two.

    python benchmarks/throughput.py --short

Checks how often trials load, quantise, tokenise and copy: see `counts.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from counts import check_counts  # type: ignore[import-not-found]
from scipy import stats

from search_spaces.allocation import decode
from tune.study.config import load_study_file

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """What one program did.

    Attributes:
        seconds: From the command to the end of its last trial.
        losses: Last validation loss by trial.
        peak_bytes: Highest proportional set size of all its processes together.
        gaps: Seconds from the end of a trial to the first step of the next on that worker.
    """

    seconds: float
    losses: dict[str, float]
    peak_bytes: int
    gaps: tuple[float, ...] = ()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4, help="of the search, beside two fixed")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--short", action="store_true", help="check counts, measure no time")
    parser.add_argument("study", nargs="*", help="flags of run_search.py, after --")
    flags = parser.parse_args()
    if flags.short:
        check_counts()
        return
    if flags.memory:
        print_memory(flags.study)
        return
    ours, theirs, starts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(flags.pairs):
            place = Path(folder) / str(pair)
            ours.append(run_alrq(place, flags.trials, flags.max_steps, pair))
            theirs.append(run_naive(place, flags.max_steps))
            starts.append(start_up(place / "start"))
            print(summary("alrq", ours[-1]), summary("naive", theirs[-1]), sep="\n", flush=True)
    print_comparison(ours, theirs)
    print(f"| command to first step, s | {with_interval(np.array(starts))} | |")


def print_comparison(ours: list[Run], theirs: list[Run]) -> None:
    """Print rates, their ratio, losses, memory and gaps."""
    rates = [
        np.array([3600 * len(run.losses) / run.seconds for run in runs]) for runs in (ours, theirs)
    ]
    differences = [
        loss - other.losses[trial]
        for run, other in zip(ours, theirs, strict=True)
        for trial, loss in run.losses.items()
        if trial in other.losses
    ]
    gaps = np.array([gap for run in ours for gap in run.gaps])
    print("| what | alrq | naive |")
    print("|---|---|---|")
    print(f"| trials an hour | {with_interval(rates[0])} | {with_interval(rates[1])} |")
    print(f"| ratio | {with_interval(rates[0] / rates[1], 2)} | 1 |")
    lost = [sum(np.isnan([*r.losses.values()]).sum() for r in runs) for runs in (ours, theirs)]
    print(f"| trials without a loss | {lost[0]} | {lost[1]} |")
    print(f"| difference of losses | {with_interval(np.array(differences), 4)} | |")
    peaks = [max(run.peak_bytes for run in runs) / 1e9 for runs in (ours, theirs)]
    print(f"| all processes, peak | {peaks[0]:.2f} GB | {peaks[1]:.2f} GB |")
    print(f"| between trials, s | median {np.median(gaps):.2f}, highest {gaps.max():.2f} | |")


def with_interval(values: np.ndarray, digits: int = 1) -> str:
    """Return the mean and its 95 % interval."""
    mean = values.mean()
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]"


def summary(name: str, run: Run) -> str:
    """Return a line about one run."""
    return f"{name}: {len(run.losses)} trials in {run.seconds:.0f} s, {run.peak_bytes / 1e9:.2f} GB"


def run_alrq(place: Path, trials: int, steps: int, seed: int) -> Run:
    """Run a search in which no trial is stopped, and write its allocations for the other."""
    flags = (
        f"--reference none --searcher random --scheduler none --budget {trials} --max-steps {steps}"
    )
    command = [*run_search(place), *flags.split(), "--seed", str(seed)]
    began = time.time()
    _, peak = watch(command, place / "log.txt", place / "studies/s/events.jsonl", trials)
    events = read_events(place / "studies/s/events.jsonl")
    proposed = {e["trial"]: e for e in events if e["event"] == "proposed"}
    counted = [trial for trial, e in proposed.items() if e["role"] in ("search", "baseline")]
    reports: dict[str, list[dict]] = {trial: [] for trial in counted}
    for event in events:
        if event["event"] == "reported" and event["trial"] in reports:
            reports[event["trial"]].append(event)
    ends = {e["trial"]: e["logged"] for e in events if e["event"] == "completed"}
    starts = sorted(first_step(found[0]) for found in reports.values())
    ended = sorted(ends[trial] for trial in counted)
    workers = min(psutil.cpu_count(), len(starts))
    write_points(place, {trial: proposed[trial]["allocation"] for trial in counted})
    return Run(
        seconds=ended[-1] - began,
        losses={trial: reports[trial][-1]["loss"] for trial in counted},
        peak_bytes=peak,
        gaps=tuple(a - b for a, b in zip(starts[workers:], ended, strict=False)),
    )


def start_up(place: Path) -> float:
    """Return the seconds from a command to its first training step, from a study of few sentences.

    Its first report comes from a fixed configuration and waits for the test, of 16 sentences here.
    """
    flags = "--budget 1 --max-steps 4 --eval-sequences 16"
    began = time.time()
    watch([*run_search(place), *flags.split()], place / "log.txt")
    events = read_events(place / "studies/s/events.jsonl")
    return min(first_step(event) for event in events if event["event"] == "reported") - began


def first_step(report: dict) -> float:
    """Return when the training before a report began."""
    return report["logged"] - report["train_seconds"] - report["eval_seconds"]


def run_naive(place: Path, steps: int) -> Run:
    """Run the other program on the allocations that alrq had."""
    points, out = place / "points.json", place / "naive.json"
    trials = len(json.loads(points.read_text()))
    flags = f"--trials {trials} --max-steps {steps} --grace-period {steps}"
    command = [sys.executable, str(ROOT / "benchmarks/naive.py"), *flags.split()]
    _, peak = watch([*command, "--points", str(points), "--out", str(out)], place / "naive.txt")
    found = json.loads(out.read_text())
    names = list(json.loads((place / "names.json").read_text()))
    losses = {
        name: trial["reports"][-1]["eval_loss"] if trial["reports"] else float("nan")
        for name, trial in zip(names, found["trials"], strict=True)
    }
    return Run(found["wall_seconds"], losses, peak)


def write_points(place: Path, allocations: dict[str, str]) -> None:
    """Write allocations as the parameters of the other program, which leaves embeddings alone."""
    inventory = load_study_file(place / "studies/s")["inventory"]
    targets = [target["name"] for target in inventory["targets"]]
    names = (*targets, *(embedding["name"] for embedding in inventory["embeddings"]))
    points = []
    for encoded in allocations.values():
        choices = decode(encoded, names).choices
        points.append(
            {f"{name}.bits": choices[name].bits for name in targets}
            | {f"{name}.rank": choices[name].rank for name in targets}
        )
    (place / "points.json").write_text(json.dumps(points))
    (place / "names.json").write_text(json.dumps(list(allocations)))


def print_memory(flags: list[str]) -> None:
    """Print the highest memory of a study on one core and on two."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for cores in ("0", "0,1"):
            place = Path(folder) / cores
            command = ["taskset", "-c", cores, *run_search(place), *flags]
            seconds, peak = watch(command, place / "log.txt")
            peaks.append(peak / 1e9)
            print(f"cores {cores}: {peaks[-1]:.2f} GB at most, {seconds:.0f} s", flush=True)
    print(f"one more worker: {peaks[1] - peaks[0]:.2f} GB")


def run_search(place: Path) -> list[str]:
    """Return the command of a study in a new folder."""
    place.mkdir(parents=True)
    script = [sys.executable, str(ROOT / "run_search.py"), "--name", "s"]
    return [*script, "--output-dir", str(place)]


def watch(
    command: list[str], log: Path, events: Path | None = None, searched: int = 0
) -> tuple[float, int]:
    """Run a command; return its seconds and the highest memory of all its processes, in bytes.

    Args:
        command: The command.
        log: File for what it prints.
        events: Log of its study; with `searched`, end it once so many trials of the search and
            both fixed configurations have ended.
        searched: Trials of the search.
    """
    began, peak = time.monotonic(), 0
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)
        while process.poll() is None:
            peak = max(peak, proportional_bytes(process.pid))
            if events is not None and events.is_file() and ended(events) >= searched + 2:
                process.send_signal(2)
                events = None
            time.sleep(SAMPLE_SECONDS)
    if process.returncode not in (0, 130):
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {log.read_text()[-2000:]}")
    return time.monotonic() - began, peak


def ended(events: Path) -> int:
    """Return how many trials of search and fixed configurations have ended."""
    found = read_events(events)
    counted = {e["trial"] for e in found if e.get("role") in ("search", "baseline")}
    ends = ("completed", "failed", "stopped")
    return sum(e["event"] in ends and e["trial"] in counted for e in found)


def read_events(path: Path) -> list[dict]:
    """Return the whole lines of a log."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def proportional_bytes(pid: int) -> int:
    """Return the proportional set size of a process and all that it started."""
    total = 0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in family:
        try:
            text = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(1024 * int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))
    return total


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
