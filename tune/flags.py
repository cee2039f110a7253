"""The flags of the command line. Nothing heavy is imported, so that mistakes answer at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from search_spaces.formats import BACKENDS, FOUR_BIT, GROUP_SIZE, GROUP_SIZES
from search_spaces.spaces import SPACES
from tune.flag_values import cache_limit, device, memory, number, when, whole, whole_list

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
# How a study is shown while it runs.
Form = Literal["shown", "quiet", "json"]
LM_TASKS = ("wikitext2", "sft", "text")
LM_MAX_LENGTH, LM_BATCH_SIZE = 256, 4


def program() -> str:
    """Return the program's name: `alrq` where it was called by its installed script."""
    return "alrq" if Path(sys.argv[0]).stem == "alrq" else "run_search"


def command() -> str:
    """Return how the program was called, to be called so again."""
    return "alrq" if program() == "alrq" else "python run_search.py"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{program()}: {message}\nSee {command()} --help.\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all flags. Flags that were not given are absent from its result."""
    parser = _Parser(
        prog=command(),
        description="Find the smallest bits and LoRA ranks, matrix by matrix, that are not "
        "measurably worse than 16-bit LoRA on your task.",
        argument_default=argparse.SUPPRESS,
    )
    _add_what(parser.add_argument_group("what is searched"))
    _add_storage(parser.add_argument_group("how weights are stored"))
    _add_search(parser.add_argument_group("how it is searched"))
    _add_recipe(parser.add_argument_group("how every trial is trained"))
    _add_places(parser.add_argument_group("where it runs and writes"))
    _add_after(parser.add_argument_group("instead of a run"))
    return parser


def _add_memory(group: Any, flag: str, example: str, text: str) -> None:
    dest = f"{flag.strip('-').replace('-', '_')}_bytes"
    group.add_argument(flag, dest=dest, type=memory(flag), metavar=example, help=text)


def _add_what(group: Any) -> None:
    group.add_argument("--space", help=f"one of {', '.join(SPACES)} (default: joint)")
    group.add_argument(
        "--model",
        help="minilm, smollm2, a local folder, or a hub id, also as owner/name@revision "
        "(default: minilm)",
    )
    group.add_argument(
        "--task",
        help="rotten_tomatoes, imdb, sst2, wikitext2, or with your own files: custom (classes), "
        "sft (conversations, of which the answers are learnt) or text (default: rotten_tomatoes)",
    )
    group.add_argument(
        "--data", metavar="PATH", help="your file or folder, or that of sst2 or wikitext2"
    )
    for name, what in (
        ("text", "texts in your file"),
        ("label", "labels in your file"),
        ("messages", "messages of a conversation, role and content (default: messages)"),
        ("prompt", "prompts (default: prompt)"),
        ("completion", "answers to the prompts (default: completion)"),
        ("instruction", "instructions (default: instruction)"),
        ("input", "what instructions are about (default: input, if there is one)"),
        ("output", "answers to the instructions (default: output)"),
    ):
        group.add_argument(f"--{name}-column", metavar="NAME", help=f"column of the {what}")
    # People who know other tools look for it.
    group.add_argument("--text-pair-column", help=argparse.SUPPRESS)
    _add_memory(
        group,
        "--max-memory",
        "30MB",
        "limit on the deployed model, weights and adapters; only what fits is proposed",
    )
    _add_memory(
        group,
        "--max-training-memory",
        "6GB",
        "limit on what training takes, as predicted: bits and micro-batches are cut to it",
    )
    group.add_argument(
        "--bits",
        type=whole_list("--bits", "2,3,4"),
        metavar="BITS",
        help="bits that modules may take, of those of the space (default: all that fit in memory)",
    )
    group.add_argument(
        "--ranks",
        type=whole_list("--ranks", "0,2,4,8"),
        metavar="RANKS",
        help="ranks that adapters may take, of those of the space (default: all)",
    )


def _add_storage(group: Any) -> None:
    group.add_argument(
        "--quant-backend",
        help=f"{', '.join(BACKENDS)}: what the device doesn't have is refused (default: auto)",
    )
    group.add_argument(
        "--four-bit",
        help=f"{', '.join(FOUR_BIT)}: how a searched module keeps 4 bits "
        "(default: as --quant-backend does)",
    )
    group.add_argument(
        "--tie",
        action=argparse.BooleanOptionalAction,
        help="give query, key and value the same bits and rank, and gate and up, for engines "
        "that fuse them (default: with a decoder in codes that vLLM reads)",
    )
    group.add_argument(
        "--group-size",
        dest="group_sizes",
        type=whole_list("--group-size", "32,128"),
        metavar="SIZES",
        help=f"weights that share a scale: {', '.join(map(str, GROUP_SIZES))}, or several with "
        f"commas, to be chosen module by module (default: {GROUP_SIZE})",
    )


def _add_search(group: Any) -> None:
    group.add_argument(
        "--budget", type=whole("--budget"), help="trials of the search (default: 50)"
    )
    group.add_argument(
        "--anchors",
        type=whole("--anchors"),
        metavar="N",
        help="uniform allocations that are tried first (default: 0 with alrq, else budget / 6)",
    )
    group.add_argument(
        "--reference",
        help="B-FP, B-Q4 or none: the fine-tune that trials start from, or none to learn the task "
        "from nothing (default: B-FP if it fits in memory, else B-Q4)",
    )
    group.add_argument(
        "--screen",
        type=whole("--screen"),
        metavar="N",
        help="allocations that are scored beside the trials, before any step (default: 0)",
    )
    group.add_argument("--searcher", help="one of alrq, tpe, nsga2, gp, random (default: alrq)")
    group.add_argument("--scheduler", help="front-asha, asha, median or none (default: front-asha)")
    group.add_argument(
        "--time-limit",
        dest="time_limit_seconds",
        type=number("--time-limit"),
        metavar="SECONDS",
        help="propose nothing after this time; what runs ends, confirmation follows",
    )
    group.add_argument(
        "--metric",
        help="exact-match, with --task sft: the share of conversations that are answered word by "
        "word (default: perplexity of the answers)",
    )
    group.add_argument(
        "--margin",
        type=number("--margin"),
        help="loss against B-FP that counts as none: points of accuracy or exact match, or per "
        "cent of perplexity (default: 2)",
    )
    group.add_argument(
        "--seed", type=whole("--seed"), help="of proposals and training (default: 0)"
    )


def _add_recipe(group: Any) -> None:
    group.add_argument("--learning-rate", type=number("--learning-rate"), help="default: 1e-3")
    group.add_argument("--max-steps", type=whole("--max-steps"), help="default: 200")
    group.add_argument("--epochs", type=number("--epochs"), help="instead of --max-steps")
    group.add_argument(
        "--tune-steps",
        type=whole("--tune-steps"),
        help="of what starts from a reference (default: half of --max-steps)",
    )
    group.add_argument(
        "--tune-learning-rate",
        type=number("--tune-learning-rate"),
        help="of what starts from a reference (default: --learning-rate, or less where a step "
        "would promise more than a start has to win)",
    )
    group.add_argument(
        "--batch-size",
        type=whole("--batch-size"),
        help=f"default: 32, language modelling {LM_BATCH_SIZE}",
    )
    group.add_argument(
        "--accumulation-steps",
        type=whole("--accumulation-steps"),
        help="micro-batches a step; the batch size stays (default: as few as fit in memory)",
    )
    group.add_argument(
        "--gradient-checkpointing",
        type=when,
        metavar="WHEN",
        help="auto, on or off: compute activations again instead of keeping them, for less memory "
        "and more time (default: auto, where nothing fits without)",
    )
    group.add_argument(
        "--max-length",
        type=whole("--max-length"),
        help=f"tokens a sequence (default: 128, language modelling {LM_MAX_LENGTH})",
    )
    group.add_argument(
        "--eval-sequences",
        type=whole("--eval-sequences"),
        help="score the first so many sequences of validation and test (default: all)",
    )
    group.add_argument(
        "--dropout", type=number("--dropout"), help="of every layer that has one (default: 0)"
    )
    group.add_argument(
        "--lora-init",
        help="default, residual (the best correction of the quantisation error) or eva",
    )
    group.add_argument(
        "--execution",
        help="packed, or dequantized: trials of the search compute with a dequantised copy, "
        "which is faster and takes more memory (default: dequantized on a CPU if it fits)",
    )


def _add_places(group: Any) -> None:
    group.add_argument(
        "--device",
        type=device,
        help="auto, cpu, cuda or mps (default: auto, the fastest of this machine)",
    )
    _add_memory(
        group,
        "--device-memory",
        "8GB",
        "plan for a device that has no more than that (default: what this one has)",
    )
    group.add_argument(
        "--mps-safe",
        action="store_true",
        help="keep every tensor below the 2**32 bytes that MPS can take, as is always done there",
    )
    group.add_argument(
        "--trials-per-gpu",
        type=whole("--trials-per-gpu"),
        metavar="N",
        help="trials that share a GPU (default: as many as it has memory and time for; 1 on a "
        "cluster)",
    )
    group.add_argument("--name", help="of the study (default: space, task and time)")
    group.add_argument("--output-dir", metavar="DIR", help="default: results")
    group.add_argument(
        "--storage",
        metavar="URI",
        help="keep a copy of the study there (s3://bucket/folder, gs://..., a shared folder), by "
        "which a cluster's nodes hand files on without a folder that they share",
    )
    group.add_argument(
        "--resume",
        metavar="PATH",
        help="go on with a study, also by its URI in a storage; --budget may grow",
    )
    group.add_argument("--address", help="a Ray cluster to join, auto for the one on this machine")
    group.add_argument("--wandb", metavar="PROJECT", help="log to W&B, offline without a key")
    group.add_argument(
        "--quiet", action="store_true", help="print failures, and at the end the answer alone"
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print one event a line, as the study's log has them, and at the end the answer; of a "
        "study that runs, or of --watch",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and the corners of the space, and end",
    )
    group.add_argument(
        "--debug", action="store_true", help="show a mistake's traceback beside its one line"
    )


def _add_after(group: Any) -> None:
    group.add_argument(
        "--watch", metavar="STUDY", help="show a study that another process runs, until it ends"
    )
    group.add_argument(
        "--report",
        metavar="STUDY",
        help="write report.html, and its figures, of a study that runs, or has ended",
    )
    group.add_argument(
        "--compare",
        metavar="STUDY",
        nargs="+",
        help="write comparison.html, of several studies on the same axes",
    )
    group.add_argument("--export", metavar="STUDY", help="write a confirmed trial, ready to load")
    group.add_argument("--trial", metavar="ID", help="the trial that --export writes")
    group.add_argument("--to", metavar="DIR", help="the new folder that --export makes")
    group.add_argument(
        "--as",
        dest="form",
        metavar="FORM",
        help="what --export writes: alrq; transformers, for it and vLLM; or gguf, for llama.cpp "
        "(default: alrq)",
    )
    group.add_argument(
        "--caches",
        type=cache_limit,
        nargs="?",
        const=None,
        metavar="20GB",
        help="show what is kept of models for later studies; with a size, remove what was unused "
        "longest until the rest fits (0: all)",
    )


def parse_flags(arguments: Sequence[str] | None) -> tuple[dict[str, Any], str | None, bool]:
    """Return the given fields of the configuration, the study to resume, and `--dry-run`."""
    parser = build_parser()
    given = vars(parser.parse_args(arguments))
    resume = given.pop("resume", None)
    dry_run = given.pop("dry_run", False)
    if "text_pair_column" in given:
        parser.error(
            f"`--text-pair-column` must be left out, got {given['text_pair_column']}: pairs of "
            "sentences can't be learnt. Join them into one column."
        )
    if "quiet" in given and "json" in given:
        parser.error("`--quiet` and `--json` exclude each other, got both. Leave one out.")
    if "epochs" in given and "max_steps" in given:
        parser.error("`--epochs` and `--max-steps` exclude each other, got both. Leave one out.")
    flags = {"trial": "--trial", "to": "--to", "form": "--as"}
    stray = [flag for name, flag in flags.items() if name in given]
    if stray and "export" not in given:
        parser.error(f"`{stray[0]}` goes with --export, got it alone. Leave it out.")
    if "label_column" in given:
        given.setdefault("task", "custom")
    return given, resume, dry_run
