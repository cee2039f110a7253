"""Saves and loads trained allocations of both models, and compares them with what was saved.

    python benchmarks/export_round_trip.py --data DIR

Prints a Markdown table: the largest difference of logits in a fresh process, the size of the
weights file against the receipt, and the difference when PEFT reads the adapter alone onto the
quantised base.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from alrq_core.build import build_model
from alrq_core.context import TrialContext, load_context
from alrq_core.export.exact import WEIGHTS, save
from alrq_core.export.parts import PEFT_FOLDER
from alrq_core.recipe import Recipe
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation
from search_spaces.spaces import ALL_BITS, make_space

STEPS = 2
FRESH_PROCESS = """
import sys, torch, alrq_core
torch.set_num_threads(1)
ids = torch.load(sys.argv[2])
with torch.inference_mode():
    torch.save(alrq_core.load(sys.argv[1]).model(input_ids=ids).logits, sys.argv[3])
"""


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return a model's logits in eval mode."""
    with torch.inference_mode():
        result: Tensor = model.eval()(input_ids=ids).logits
    return result


def round_trip(context: TrialContext, allocation: Allocation, folder: Path) -> tuple[float, ...]:
    """Return the difference of logits, the size over the receipt, and PEFT's difference."""
    run = TrialRun(context, allocation, seed=0)
    run.advance(STEPS)
    ids = torch.from_numpy(context.task.test.sequence(0).astype("int64"))[None]
    saved = save(run, folder / "saved")
    before = logits(run.model, ids)
    torch.save(ids, folder / "ids.pt")
    files = [str(saved), str(folder / "ids.pt"), str(folder / "logits.pt")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, *files], check=True)
    after = torch.load(folder / "logits.pt")
    cpu, alpha = torch.device("cpu"), context.recipe.alpha_over_rank
    base = build_model(context.base, allocation.with_ranks({}), (), alpha, run.compute_dtype, cpu)
    base.is_loaded_in_4bit = base.is_loaded_in_8bit = True  # type: ignore[assignment]
    by_peft = logits(PeftModel.from_pretrained(base, saved / PEFT_FOLDER), ids)
    size = (saved / WEIGHTS).stat().st_size / run.receipt.memory_bytes
    return float((after - before).abs().max()), size, float((by_peft - before).abs().max())


def main() -> None:
    """Make the round trip with every number of bits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="WikiText-2's valid and test.txt")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    short = Recipe(max_steps=STEPS, batch_size=4, max_length=64)
    small = load_context("minilm", "rotten_tomatoes", short)
    large = load_context("smollm2", "wikitext2", short, data=data)
    large = replace(large, task=large.task.scored_on(8))
    print("| model | bits | logits, fresh process | weights file / receipt | adapter by PEFT |")
    print("|---|---|---|---|---|")
    for context in (small, large):
        space = make_space("joint", context.inventory)
        for bits in ALL_BITS:
            with tempfile.TemporaryDirectory() as folder:
                difference, size, by_peft = round_trip(
                    context, space.nearest_uniform(bits, 8), Path(folder)
                )
            print(
                f"| {context.inventory.model} | {bits} | {difference:.1e} | {size:.4f} "
                f"| {by_peft:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
