"""Compares the predicted peak memory of trials with what torch's allocator hands out.

Measured is what torch allocates on the CPU while a `TrialRun` is built and does three training
steps, from the profiler's record of every allocation. Sequences are random tokens of full length;
in a batch for classification one is a token shorter, as most batches are padded. The base model is
there before and does not count.

    python benchmarks/peak_memory.py --out peaks.json
"""

import argparse
import gc
import json
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from alrq_core.context import TrialContext
from alrq_core.data.encode import EncodedTask, Tokens
from alrq_core.memory.batch_plan import plan_batch
from alrq_core.models.loading import inspect_model, load_model
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import memory_bytes
from search_spaces.inventory import Inventory

STEPS = 3
KINDS: dict[str, tuple[TaskKind, int]] = {
    "minilm": ("classification", 2),
    "smollm2": ("language-modelling", 0),
}


@dataclass(frozen=True)
class Configuration:
    """What is trained.

    Attributes:
        bits: Of all modules; 0 for all bits and several ranks in turn.
        answers: Tokens of a sequence that are predicted; None for all but the first.
        checkpointing: See `Recipe.gradient_checkpointing`.
    """

    model: str
    bits: int
    rank: int
    batch: int
    length: int
    answers: int | None = None
    checkpointing: bool = False


CONFIGURATIONS = (
    *(Configuration("minilm", bits, 8, n, 64) for bits in (16, 8, 4, 3, 2) for n in (8, 32)),
    *(Configuration("minilm", 4, rank, 8, 32) for rank in (0, 2, 32)),
    *(Configuration("minilm", bits, 2, 32, 128) for bits in (16, 4, 2)),
    *(Configuration("minilm", 0, 0, batch, 128) for batch in (8, 32)),
    *(Configuration("smollm2", bits, 8, 2, 64) for bits in (16, 4, 2)),
    *(Configuration("smollm2", bits, 8, 4, 256) for bits in (16, 4, 2)),
    *(Configuration("smollm2", bits, 2, 2, 128) for bits in (16, 4, 2)),
    Configuration("smollm2", 4, 2, 1, 256),
    Configuration("smollm2", 0, 0, 4, 64),
    Configuration("smollm2", 2, 8, 4, 256, answers=2),
    Configuration("smollm2", 2, 8, 4, 256, checkpointing=True),
    Configuration("smollm2", 2, 8, 4, 256, answers=2, checkpointing=True),
)


@dataclass(frozen=True)
class Peaks:
    """What a trial allocated.

    Attributes:
        build: Peak while it was built, in bytes.
        step: Peak of its training steps.
        receipt: Bytes of the deployed model, from the receipt.
    """

    build: int
    step: int
    receipt: int


def main() -> None:
    """Measure all configurations; write JSON and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    bases: dict[str, tuple[nn.Module, Inventory]] = {}
    rows = []
    for configuration in CONFIGURATIONS:
        model = configuration.model
        if model not in bases:
            kind, labels = KINDS[model]
            bases[model] = (load_model(model, kind, labels), inspect_model(model, kind, labels))
        rows.append(compare(*bases[model], configuration))
        print(line(rows[-1]) if len(rows) > 1 else f"{HEADER}\n{line(rows[0])}", flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    worst = max(rows, key=lambda row: abs(row["error"]))
    print(f"\nLargest error: {100 * worst['error']:+.1f} %, of {len(rows)}.\n")
    print(summary([row for row in rows if row["model"] == "smollm2"]))


HEADER = (
    "| model | bits | rank | batch | length | answers | checkpointing | build MB | step MB "
    "| predicted | measured | error | bytes as in the receipt |\n|" + " --- |" * 13
)


def compare(base: nn.Module, inventory: Inventory, about: Configuration) -> dict[str, Any]:
    """Return a row of the table."""
    kind, labels = KINDS[inventory.model]
    bits, rank, answers = about.bits, about.rank, about.answers
    allocation = uniform(inventory, bits, rank) if bits else mixed(inventory)
    # As a study plans it: on a CPU a batch goes through the model in parts.
    predicted = plan_batch(
        inventory,
        kind,
        labels,
        allocation,
        about.batch,
        about.length,
        torch.float32,
        limit_bytes=None,
        tensor_limit_bytes=None,
        answers=answers,
        checkpointing=about.checkpointing,
    ).memory
    recipe = Recipe(
        batch_size=about.batch,
        max_length=about.length,
        cpu_dtype="float32",
        device="cpu",
        gradient_checkpointing=about.checkpointing,
    )
    shape = (about.batch, about.length, recipe, answers)
    measured = measure(base, inventory, kind, allocation, *shape)
    peak = max(measured.build, measured.step)
    return {
        "model": inventory.model,
        "bits": bits or "mixed",
        "rank": rank if bits else "mixed",
        "batch": about.batch,
        "length": about.length,
        "answers": about.length - 1 if answers is None else answers,
        "checkpointing": "yes" if about.checkpointing else "no",
        "predicted": asdict(predicted),
        "measured": asdict(measured),
        "predicted_peak": predicted.peak_bytes,
        "measured_peak": peak,
        "error": predicted.peak_bytes / peak - 1,
        "step_error": predicted.step_bytes / measured.step - 1,
        "build_error": predicted.build_bytes / measured.build - 1,
        "stored_as_predicted": memory_bytes(allocation, inventory) == measured.receipt,
    }


def line(row: dict[str, Any]) -> str:
    """Return a row as Markdown, in megabytes; predicted and measured for building and a step."""
    predicted, measured = row["predicted"], row["measured"]
    step = predicted["static_bytes"] + predicted["activation_bytes"]
    cells = (
        *(str(row[key]) for key in ("model", "bits", "rank", "batch", "length", "answers")),
        row["checkpointing"],
        f"{predicted['build_bytes'] / 1e6:.1f} / {measured['build'] / 1e6:.1f}",
        f"{step / 1e6:.1f} / {measured['step'] / 1e6:.1f}",
        f"{row['predicted_peak'] / 1e6:.1f} MB",
        f"{row['measured_peak'] / 1e6:.1f} MB",
        f"{100 * row['error']:+.1f} %",
        "yes" if row["stored_as_predicted"] else "NO",
    )
    return f"| {' | '.join(cells)} |"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return what 16, 4 and 2 bits take next to each other, at rank 8, as Markdown."""
    lines = ["| SmolLM2, rank 8 | 16 bits | 4 bits | 2 bits |", "| --- | --- | --- | --- |"]
    for what in ("build", "step"):
        for batch, length in ((2, 64), (4, 256)):
            found = {
                row["bits"]: f"{row['measured'][what] / 1e6:.0f} MB"
                for row in rows
                if (row["rank"], row["batch"], row["length"]) == (8, batch, length)
                and (row["answers"], row["checkpointing"]) == (length - 1, "no")
            }
            cells = " | ".join(found[bits] for bits in (16, 4, 2))
            lines.append(f"| {what}, batch {batch}, length {length} | {cells} |")
    return "\n".join(lines)


def uniform(inventory: Inventory, bits: int, rank: int) -> Allocation:
    """Return the same bits and rank everywhere; embeddings in bits that they can have."""
    embedding = bits if bits in (4, 8, 16) else 4
    choices = {t.name: Choice(bits, rank) for t in inventory.targets}
    choices |= {e.name: Choice(embedding, 0) for e in inventory.embeddings}
    return Allocation({name: choices[name] for name in inventory.names})


def mixed(inventory: Inventory) -> Allocation:
    """Return all bits and several ranks in turn; embeddings in 8 bits."""
    bits, ranks = (16, 8, 4, 3, 2), (0, 2, 8, 32)
    choices = {
        target.name: Choice(bits[number % len(bits)], ranks[number % len(ranks)])
        for number, target in enumerate(inventory.targets)
    }
    choices |= {e.name: Choice(8, 0) for e in inventory.embeddings}
    return Allocation({name: choices[name] for name in inventory.names})


def measure(
    base: nn.Module,
    inventory: Inventory,
    kind: TaskKind,
    allocation: Allocation,
    batch: int,
    length: int,
    recipe: Recipe | None = None,
    answers: int | None = None,
) -> Peaks:
    """Return the peaks of a trial on full-length batches, of which the last tokens are answers."""
    size: int = base.config.vocab_size  # type: ignore[union-attr, assignment]
    # As many training sequences as a batch: the trial's probe after its first step, which takes
    # up to eight, is never larger than a step.
    task = EncodedTask(
        name="random",
        kind=kind,
        label_names=("no", "yes") if kind == "classification" else (),
        splits="random tokens",
        pad_id=0,
        train=random_tokens(kind, batch, length, size, answers),
        validation=random_tokens(kind, 2, length, size),
        test=random_tokens(kind, 2, length, size),
    )
    given = recipe or Recipe(batch_size=batch, max_length=length, cpu_dtype="float32", device="cpu")
    make = partial(TrialContext, base=base, inventory=inventory, task=task, recipe=given)
    # As a study has made them by then; who made them holds them, and their files count.
    stored = {name: [choice.format] for name, choice in allocation.choices.items()}
    deque(make().make_codes(stored), maxlen=0)
    context = make()
    with recorded() as building:
        run = TrialRun(context, allocation, seed=0)
    with recorded() as training:
        run.model.train()
        for _ in range(STEPS):
            run.training.train_step()
    (build, held), (step, _) = peak_and_rest(building), peak_and_rest(training)
    return Peaks(build, held + step, run.receipt.memory_bytes)


@contextmanager
def recorded() -> Iterator[list[int]]:
    """Yield a list that ends up with the bytes of each allocation and, negative, of each release.

    What was there before and is released inside is left out, and so is what is allocated by other
    libraries than torch. The profiler names each such event `[memory]`.
    """
    # What earlier measurements left behind would else be released inside of this one.
    gc.collect()
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        yield found
    assert prof.profiler is not None
    assert prof.profiler.kineto_results is not None
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    found.extend(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns()))


def peak_and_rest(sizes: list[int]) -> tuple[int, int]:
    """Return the highest running total of a record, and the last."""
    totals = np.cumsum([0, *sizes])
    assert totals.min() >= -(2**20), "what was allocated before was released inside"
    return int(totals.max()), int(totals[-1])


def random_tokens(
    kind: TaskKind, rows: int, length: int, vocabulary: int, answers: int | None = None
) -> Tokens:
    """Return sequences of one length; for classification the last one is a token shorter."""
    lengths = np.full(rows, length)
    if kind == "classification" and rows > 1:
        lengths[-1] -= 1
    ids = np.random.default_rng(0).integers(4, vocabulary, int(lengths.sum())).astype(np.int32)
    labels = np.arange(rows) % 2 if kind == "classification" else np.empty(0)
    counted = None
    if answers is not None:
        counted = np.tile(np.arange(length) >= length - answers, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(ids, offsets, labels.astype(np.int64), counted)


if __name__ == "__main__":
    main()
