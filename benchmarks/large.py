"""What a decoder of a billion weights takes on a CPU: to load, to build, to train, and on the disk.

    python -m benchmarks.large --results DIR

Random weights with Llama 3.2 1B's blocks and its vocabulary, in bfloat16 in their files, which are
made once. Each allocation is a process of its own with one thread: it loads the model, builds a
trial, which makes codes if they aren't kept yet, builds it again, trains it for a few steps on
windows of random tokens and scores it. Per stage: seconds, and the highest memory by its kind, own
memory that no file backs and pages of mapped files, as Linux counts them ten times a second.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alrq_core.context import make_context
from alrq_core.data.encode import EncodedTask, Tokens
from alrq_core.models.loading import inspect_model
from alrq_core.recipe import Recipe
from alrq_core.trial import TrialRun
from benchmarks.growth import save_model
from search_spaces.fixed import fixed_allocation
from search_spaces.formats import Formats
from search_spaces.inventory import Inventory

WORDS, LENGTH, BATCH = 128_256, 256, 4
INTERVAL_SECONDS = 0.1
KINDS = {"Anonymous": "own", "Pss_File": "mapped"}


def main() -> None:
    """Measure both allocations, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    os.environ["HF_HOME"] = str(given.results / "cache")
    model = given.results / "model"
    if not model.is_dir():
        save_decoder(model)
    print(f"files {size_of(model) / 1e9:.2f} GB\n")
    print("| allocation | stage | seconds | own, GB | mapped, GB |\n|---|---|---|---|---|")
    for name in ("B-FP", "B-Q4"):
        process = get_context("spawn").Process(target=measure, args=(model, name, given.steps))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"{name} ended with {process.exitcode}")
    print(f"\ncaches {size_of(given.results / 'cache') / 1e9:.3f} GB")


def save_decoder(folder: Path) -> None:
    """Write random weights in bfloat16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    save_model(LlamaForCausalLM(config), folder)
    torch.set_default_dtype(torch.float32)


def measure(model: Path, name: str, steps: int) -> None:
    """Print the rows of one fixed allocation."""
    torch.set_num_threads(1)
    task = windows()
    with stage(name, "import and inventory"):
        inventory: Inventory = inspect_model(str(model), task.kind, 0)
    recipe = Recipe(max_steps=steps, batch_size=BATCH, max_length=LENGTH, device="cpu")
    with stage(name, "load"):
        context = make_context(inventory, task, recipe)
    formats = Formats(backend="bnb", device="cpu", four_bit=None, group_sizes=(64,))
    allocation = fixed_allocation(name, inventory, formats)
    with stage(name, "build the first time"):
        run = TrialRun(context, allocation, seed=0)
    del run
    with stage(name, "build again"):
        run = TrialRun(context, allocation, seed=0)
    with stage(name, f"{steps} steps of {BATCH} x {LENGTH} tokens, and a score"):
        run.advance(steps)


def windows() -> EncodedTask:
    """Return a task of random windows."""
    ids = np.random.default_rng(0).integers(3, WORDS, 8 * LENGTH).astype(np.int32)
    tokens = Tokens(ids, np.arange(9) * LENGTH, np.empty(0, dtype=np.int64))
    return EncodedTask(
        name="random windows",
        kind="language-modelling",
        label_names=(),
        splits="made up",
        pad_id=0,
        train=tokens,
        validation=tokens,
        test=tokens,
    )


@contextmanager
def stage(name: str, what: str) -> Iterator[None]:
    """Print what happened inside as a row."""
    ended, highest = Event(), dict.fromkeys(KINDS.values(), 0)

    def watch() -> None:
        while True:
            for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
                key, _, rest = line.partition(":")
                if key in KINDS:
                    highest[KINDS[key]] = max(highest[KINDS[key]], int(rest.split()[0]) * 1024)
            if ended.wait(INTERVAL_SECONDS):
                return

    watcher = Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    sizes = " | ".join(f"{highest[kind] / 1e9:.2f}" for kind in KINDS.values())
    print(f"| {name} | {what} | {seconds:.1f} | {sizes} |", flush=True)


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
