"""How the cost of a trial grows with its ranks, its bits and its number of modules.

    python benchmarks/growth.py --out growth.json

One process, one thread, packed weights. All variants of a table take turns, round by round and on
the same batches, so that other work on the machine hits all alike. A ratio is the median over
rounds of a variant's time against that of the reference (marked *) in the same round, with a 95 %
interval (bootstrap of the rounds). Beside it stands the ratio of the work: for a step, the
operations of the matrix products of target modules and adapters, counted from their shapes; for
what is done once a trial or once a rung, the number of modules. Attention, norms and head are not
counted. Where time / work is above 1, something grows faster than the work.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from alrq_core.context import TrialContext, load_context, make_context
from alrq_core.data.encode import (
    PART_TOKENS,
    EncodedTask,
    Tokens,
    train_batches,
    train_parts,
)
from alrq_core.models.loading import inspect_model
from alrq_core.receipt import check_receipt, confirm_unchanged, take_receipt
from alrq_core.recipe import Recipe
from alrq_core.records import TrialReport
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation
from search_spaces.spaces import ALL_BITS, ALL_RANKS, make_space

RESAMPLES = 2000
# Times as many rounds of what takes a tenth of a MiniLM step.
SHORT_FACTOR = 3
WARM_UP = 2
BLOCKS = (5, 14, 28, 43)
WIDTH, WORDS, WINDOW_TOKENS = 64, 32, 12


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant of a table.

    Attributes:
        variant: What differs.
        reference: Whether the others are compared with it.
        milliseconds: Median over the rounds.
        work: In units of the table.
        time_ratio, low, high: Its time to the reference's, with the interval.
        work_ratio: Its work to the reference's.
    """

    variant: str
    reference: bool
    milliseconds: float
    work: float
    time_ratio: float
    low: float
    high: float
    work_ratio: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Variants of one thing.

    Attributes:
        title: With all conditions.
        unit: Of the work.
        rows: One a variant.
    """

    title: str
    unit: str
    rows: list[Row]


def main() -> None:
    """Measure every table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="the tables as JSON")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    rounds, tables, cache = flags.rounds, [], "alrq_core.context.cache_folder"
    with TemporaryDirectory() as name, patch(cache, lambda: folder / "packed"):
        folder = Path(name)
        for table in chain(minilm_tables(rounds), module_tables(folder, SHORT_FACTOR * rounds)):
            tables.append(table)
            print_table(table)
    load = [round(value, 1) for value in os.getloadavg()]
    print(f"\n{rounds} rounds, {SHORT_FACTOR * rounds} with Llama; load averages {load}")
    if flags.out is not None:
        content = {"rounds": rounds, "load": load, "tables": list(map(asdict, tables))}
        flags.out.write_text(json.dumps(content, indent=1), encoding="utf-8")


def minilm_tables(rounds: int) -> Iterator[Table]:
    """Yield steps by rank and by bits."""
    recipe = Recipe(max_steps=rounds + WARM_UP, execution="packed")
    context = load_context("minilm", "rotten_tomatoes", recipe)
    space = make_space("joint", context.inventory)
    where = f"Step of 32 sentences, MiniLM, {len(context.inventory.targets)} modules"
    by_rank = {f"rank {rank}": space.nearest_uniform(4, rank) for rank in ALL_RANKS}
    yield step_table(f"{where}, 4 bits", dict.fromkeys(by_rank, context), by_rank, "rank 8")
    by_bits = {f"{bits} bits": space.nearest_uniform(bits, 8) for bits in ALL_BITS}
    yield step_table(f"{where}, rank 8", dict.fromkeys(by_bits, context), by_bits, "16 bits")


def module_tables(folder: Path, rounds: int) -> Iterator[Table]:
    """Yield steps, builds, receipts and checkpoints by number of modules."""
    contexts, allocations = {}, {}
    for blocks in BLOCKS:
        save_llama(folder / f"llama-{blocks}", blocks)
        context = windows_context(folder / f"llama-{blocks}", rounds + WARM_UP)
        variant = f"{len(context.inventory.targets)} modules"
        contexts[variant] = context
        allocations[variant] = make_space("joint", context.inventory).nearest_uniform(4, 8)
    where, reference = f"Llama of width {WIDTH}, 4 bits, rank 8", next(iter(contexts))
    title = f"Step of 8 windows of {WINDOW_TOKENS} tokens, {where}"
    yield step_table(title, contexts, allocations, reference)
    # As workers do it: what stays is not searched for garbage before each trial.
    gc.collect()
    gc.freeze()
    modules = [len(context.inventory.targets) for context in contexts.values()]
    for what, actions in once_actions(contexts, allocations, folder):
        rows = compare(take_turns(actions, rounds), list(contexts), modules, reference)
        yield Table(title=f"{what}, {where}", unit="module", rows=rows)


def save_llama(folder: Path, blocks: int) -> None:
    """Write a random model of seven modules a block, in which all but the overhead is small."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=WORDS, num_hidden_layers=blocks, **sizes, **special)
    save_model(LlamaForCausalLM(config), folder)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write a random model and a tokenizer of a few words, without which none is loaded."""
    model.save_pretrained(folder)
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "yes", "no"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


def windows_context(folder: Path, steps: int) -> TrialContext:
    """Return what trials of a saved model on random windows share."""
    ids = np.random.default_rng(0).integers(3, WORDS, 64 * WINDOW_TOKENS).astype(np.int32)
    tokens = Tokens(ids, np.arange(65) * WINDOW_TOKENS, np.empty(0, dtype=np.int64))
    splits = dict.fromkeys(("train", "validation", "test"), tokens)
    what = {"name": "random windows", "kind": "language-modelling", "splits": "made up"}
    task = EncodedTask(**what, **splits, label_names=(), pad_id=0)
    recipe = Recipe(max_steps=steps, batch_size=8, execution="packed")
    return make_context(inspect_model(str(folder), task.kind, 0), task, recipe)


def step_table(
    title: str,
    contexts: dict[str, TrialContext],
    allocations: dict[str, Allocation],
    reference: str,
) -> Table:
    """Return training steps, compared with their operations."""
    runs = {name: TrialRun(contexts[name], allocations[name], 0) for name in contexts}
    work = [step_operations(run) / 1e9 for run in runs.values()]
    for run in runs.values():
        run.model.train()
    rounds = contexts[reference].recipe.max_steps - WARM_UP
    seconds = take_turns([run.training.train_step for run in runs.values()], rounds)
    rows = compare(seconds, list(runs), work, reference)
    return Table(title=title, unit="GFLOP", rows=rows)


def once_actions(
    contexts: dict[str, TrialContext], allocations: dict[str, Allocation], folder: Path
) -> Iterator[tuple[str, list[Callable[[], object]]]]:
    """Yield what a trial does once or at each rung, for each model.

    All but the first build find the packed weights in the cache. The checkpoint holds the state of
    the optimiser.
    """
    runs: dict[str, TrialRun] = {}
    reports: dict[str, TrialReport] = {}

    def build(name: str) -> None:
        runs.pop(name, None)
        runs[name] = TrialRun(contexts[name], allocations[name], 0)

    def prove(name: str) -> None:
        run, inventory = runs[name], contexts[name].inventory
        receipt = take_receipt(run.model, inventory, run.compute_dtype)
        check_receipt(receipt, allocations[name], inventory)
        confirm_unchanged(run.model, receipt, inventory)

    def save(name: str) -> None:
        runs[name].save_checkpoint(folder / "checkpoint.pt")

    yield "Build of a trial", [partial(build, name) for name in contexts]
    yield "Receipt, taken, checked and confirmed", [partial(prove, name) for name in contexts]
    for name, run in runs.items():
        reports[name] = run.advance(1)
    yield "Checkpoint", [partial(save, name) for name in contexts]


def take_turns(actions: Sequence[Callable[[], object]], rounds: int) -> np.ndarray:
    """Return the seconds of each action in each round, rounds x actions, without the warm-up."""
    seconds = np.empty((WARM_UP + rounds, len(actions)))
    for number in range(WARM_UP + rounds):
        for place in np.roll(np.arange(len(actions)), number).tolist():
            started = time.perf_counter()
            actions[place]()
            seconds[number, place] = time.perf_counter() - started
    return seconds[WARM_UP:]


def step_operations(run: TrialRun) -> float:
    """Return the operations of the matrix products of a step, the mean of the measured ones.

    A module's input needs no gradient where nothing before it is trained.
    """
    task, recipe = run.context.task, run.context.recipe
    lengths, tokens = task.train.lengths, []
    for rows in islice(train_batches(task.train, recipe, 0), WARM_UP, recipe.max_steps):
        parts = train_parts(rows, lengths, recipe.micro_batch, PART_TOKENS)
        tokens.append(sum(len(part) * int(lengths[part].max()) for part in parts))
    needs, products = inputs_with_gradient(run), 0
    for target in run.context.inventory.targets:
        rank = run.allocation.choices[target.name].rank
        rows_in, rows_out = rank * target.in_features, rank * target.out_features
        products += target.weights + rows_in + rows_out
        # B^T times the gradient, then the gradients of A and B.
        products += rows_out + rows_in + rows_out
        if needs[target.name]:
            products += target.weights + rows_in
    # A multiplication and an addition.
    return 2.0 * products * float(np.mean(tokens))


def inputs_with_gradient(run: TrialRun) -> dict[str, bool]:
    """Return whether the input of each target module needs a gradient."""
    found: dict[str, bool] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name] = args[0].requires_grad

    names = [target.name for target in run.context.inventory.targets]
    modules = {name: run.model.get_submodule(name) for name in names}
    handles = [m.register_forward_pre_hook(partial(note, name)) for name, m in modules.items()]
    run.training.mean_loss(np.arange(1))
    for handle in handles:
        handle.remove()
    return found


def compare(
    seconds: np.ndarray, variants: list[str], work: Sequence[float], reference: str
) -> list[Row]:
    """Return a row for each column of seconds, rounds x variants."""
    base, generator = variants.index(reference), np.random.default_rng(0)
    ratios = seconds / seconds[:, [base]]
    draws = np.median(ratios[generator.integers(0, len(ratios), (RESAMPLES, len(ratios)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return [
        Row(
            variant=variant,
            reference=place == base,
            milliseconds=float(1000 * np.median(seconds[:, place])),
            work=work[place],
            time_ratio=float(np.median(ratios[:, place])),
            low=float(low[place]),
            high=float(high[place]),
            work_ratio=work[place] / work[base],
        )
        for place, variant in enumerate(variants)
    ]


def print_table(table: Table) -> None:
    """Print one table with its title."""
    print(f"\n{table.title}\n")
    print(
        f"| variant | ms | {table.unit}s | ms a {table.unit} | work / reference | "
        "time / reference | time / work |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in table.rows:
        low, middle, high = (t / row.work_ratio for t in (row.low, row.time_ratio, row.high))
        print(
            f"| {row.variant}{' *' if row.reference else ''} | {row.milliseconds:.1f} | "
            f"{row.work:.3g} | {row.milliseconds / row.work:.3g} | {row.work_ratio:.2f} | "
            f"{row.time_ratio:.2f} [{row.low:.2f}, {row.high:.2f}] | "
            f"{middle:.2f} [{low:.2f}, {high:.2f}] |",
            flush=True,
        )


if __name__ == "__main__":
    main()
