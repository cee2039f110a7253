"""Short conversations in a language model: batches of similar length, or packed into one row.

Both compute the loss of the same conversations and its gradient. Padding costs its tokens; packing
has none, but attention must be kept apart by a mask over the whole row.

    python -m benchmarks.packing --data FILE [--model smollm2] [--batches 12]
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alrq_core.context import TrialContext, load_context
from alrq_core.data.encode import Tokens, collate, train_batches
from alrq_core.data.losses import logits_of, losses_of
from alrq_core.precision import autocast
from alrq_core.recipe import Recipe
from alrq_core.trial import TrialRun
from search_spaces.fixed import fixed_allocation
from tune.report.intervals import mean_interval

Loss = Callable[[np.ndarray], Tensor]


def padded(context: TrialContext, model: torch.nn.Module) -> Loss:
    """Return what computes the loss of some conversations side by side."""
    tokens, task = context.task.train, context.task

    def loss(rows: np.ndarray) -> Tensor:
        batch = collate(tokens, rows, task.pad_id).to(context.device)
        with autocast(context.compute_dtype, context.device):
            logits = logits_of(model, batch)
        return losses_of(logits, batch).mean()

    return loss


def packed(context: TrialContext, model: torch.nn.Module) -> Loss:
    """Return what computes it of the same conversations one after another in a row."""
    tokens = context.task.train

    def loss(rows: np.ndarray) -> Tensor:
        sequences = [tokens.sequence(int(row)) for row in rows]
        ids = torch.from_numpy(np.concatenate(sequences).astype(np.int64))[None]
        places = torch.cat([torch.arange(len(sequence)) for sequence in sequences])[None]
        counted = np.concatenate([tokens.predicted(int(row)) for row in rows])
        found = np.flatnonzero(counted)
        with autocast(context.compute_dtype, context.device):
            # transformers keeps sequences apart where positions begin anew.
            hidden = model.get_submodule("model")(
                input_ids=ids, position_ids=places, use_cache=False
            )[0]
            logits = model.get_submodule("lm_head")(hidden[0, found - 1])
        each = torch.nn.functional.cross_entropy(logits.float(), ids[0, found], reduction="sum")
        return each / (len(rows) * mean_answers(tokens))

    return loss


def mean_answers(tokens: Tokens) -> float:
    """Return the answers' tokens of a conversation, on average."""
    return float(tokens.answers.mean())


def main() -> None:
    """Print seconds a batch of both ways, their ratio, and by how much losses differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--max-length", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(batch_size=8, max_length=given.max_length, device="cpu")
    context = load_context(given.model, "sft", recipe, given.data)
    model = TrialRun(context, fixed_allocation("B-FP", context.inventory), seed=0).model.train()
    ways = {"buckets": padded(context, model), "packed": packed(context, model)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    gaps, real, whole = [], 0, 0
    for rows in islice(train_batches(context.task.train, recipe, 0), given.batches):
        lengths = context.task.train.lengths[rows]
        real, whole = real + int(lengths.sum()), whole + len(rows) * int(lengths.max())
        losses = []
        for way, loss in ways.items():
            start = time.perf_counter()
            found = loss(rows)
            found.backward()
            seconds[way].append(time.perf_counter() - start)
            losses.append(float(found.detach()))
        gaps.append(abs(losses[0] - losses[1]) / losses[0])
    print(f"{len(gaps)} batches, {real} tokens, {whole - real} of padding ({whole / real - 1:.1%})")
    ratio = np.log(np.array(seconds["packed"]) / np.array(seconds["buckets"]))
    low, high = np.exp(mean_interval(ratio[None]))
    for way, each in seconds.items():
        print(f"{way}: {np.median(each):.3f} s a batch")
    print(f"packed / buckets: {np.exp(ratio.mean()):.3f} [{low:.3f}, {high:.3f}]")
    print(f"largest difference of losses: {max(gaps):.2%}")


if __name__ == "__main__":
    main()
