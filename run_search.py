"""Searches bits and LoRA ranks for every matrix of a transformer: flags in, the front out."""

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from tune.commands import command_of, keep_caches_small, say
from tune.flags import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    LM_BATCH_SIZE,
    LM_MAX_LENGTH,
    LM_TASKS,
    Form,
    parse_flags,
    program,
)
from tune.mistakes import Attempt, print_anything, tell

RECIPE_FLAGS = (
    "learning_rate",
    "max_steps",
    "tune_steps",
    "tune_learning_rate",
    "batch_size",
    "accumulation_steps",
    "max_length",
    "dropout",
    "device",
    "execution",
    "lora_init",
    "gradient_checkpointing",
)
PLAIN_WIDTH = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    print_anything()
    given, resume, dry_run = parse_flags(arguments)
    attempt = Attempt(debug=given.pop("debug", False))
    try:
        return _run(attempt, given, resume, dry_run)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error, attempt)


def _run(attempt: Attempt, given: dict[str, Any], resume: str | None, dry_run: bool) -> int:
    """Run what the flags ask for; return the exit code."""
    quiet = given.pop("quiet", False)
    form: Form = "json" if given.pop("json", False) else "quiet" if quiet else "shown"
    # It reports at import which optional kernels it can't load.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    width = None if Console().is_terminal else PLAIN_WIDTH
    shown = Console(width=width)
    # What is said around a study, and not of it.
    console = shown if form == "shown" else Console(width=width, quiet=True)
    warn = partial(say, shown if form == "shown" else Console(stderr=True))
    if (command := command_of(given, form, dry_run)) is not None:
        return command(shown if form != "quiet" else console, given, form)
    with ExitStack() as held:
        with ExitStack() as running:
            # Imports follow the checks that need them, so that mistakes answer at once.
            config = _config(given, resume, dry_run)
            from tune.study.lock import locked

            if resume is not None and not dry_run:
                held.enter_context(locked(config.folder))
            if not dry_run or config.address is not None:
                from tune.on_ray.cluster import ray_started

                places = (config.address, config.recipe.device, config.trials_per_gpu)
                running.enter_context(ray_started(*places))
            hosts = None
            if config.address is not None:
                from tune.on_ray.nodes import hosts as hosts_of

                hosts = hosts_of(
                    config.recipe.device, config.recipe.cpu_dtype, partial(say, console)
                )
            prepared = _prepared(config, resume, console, dry_run, hosts)
            if dry_run:
                return 0
            from tune.on_ray.run import check_cluster, run_study

            check_cluster(prepared, warn)
            keep_caches_small(console, None)
            if resume is None:
                from tune.study.folders import prepare_folder

                held.enter_context(locked(prepare_folder(config)))
            from tune.study.mirror import mirrored

            mirror = held.enter_context(mirrored(config, warn))
            attempt.study, attempt.budget = config.folder, config.budget
            end = run_study(prepared, shown, mirror, form)
        from tune.report.finish import finish

        result = finish(prepared, end)
        if mirror is not None:
            mirror.add(result.files)
        code = _report(shown, result, config.margin, attempt, form)
        if config.wandb is not None and result.page is not None and result.finished:
            from tune.report.sinks import send_report

            send_report(config, result.page, prepared.inventory, result.state)
        return code


def _prepared(config: Any, resume: str | None, console: Console, dry_run: bool, hosts: Any) -> Any:
    """Return a study that can start, after printing its plan."""
    from tune.report.cards import cards_table
    from tune.report.describe import describe_plan
    from tune.study.prepare import fit, read
    from tune.study.record import check_same_study

    found = read(config, weights=not dry_run, hosts=hosts)
    if dry_run:
        # Also where nothing fits in this machine.
        console.print(cards_table(found))
    prepared = fit(found)
    if resume is not None:
        check_same_study(prepared, config.folder)
    if config.wandb is not None:
        from tune.report.sinks import wandb_init

        wandb_init()
    say(console, describe_plan(prepared))
    return prepared


def _config(given: dict[str, Any], resume: str | None, dry_run: bool) -> Any:
    """Return the study's configuration from the flags, or from the study to resume."""
    from alrq_core.recipe import Recipe
    from tune.study.config import StudyConfig, resumed_config
    from tune.study.folders import check_writable

    recipe_given = {key: given.pop(key) for key in RECIPE_FLAGS if key in given}
    if resume is not None:
        folder = Path(resume) if "://" not in resume else _fetched(resume, given, dry_run)
        return resumed_config(folder, given, recipe_given)
    if given.get("task") in LM_TASKS:
        recipe_given = {
            "max_length": LM_MAX_LENGTH,
            "batch_size": LM_BATCH_SIZE,
            **recipe_given,
        }
    assert set(given) <= {field.name for field in fields(StudyConfig)}
    config = StudyConfig(**given, recipe=Recipe(**recipe_given))
    check_writable(config)
    if config.storage is not None:
        from tune.study.stored import check_storage

        check_storage(config)
    return config


def _fetched(uri: str, given: dict[str, Any], dry_run: bool) -> Path:
    """Return the folder of a study that a store had, to go on with both."""
    from tune.study.store import Store
    from tune.study.stored import fetched_study

    if dry_run:
        raise ValueError(
            f"`--resume` must be a folder with --dry-run, got {uri!r}. Leave out --dry-run, to "
            "bring the study here and go on with it."
        )
    folder = fetched_study(uri, Path(given.get("output_dir", "results")))
    print(f"brought {uri} to {folder}", file=sys.stderr)
    given.setdefault("storage", Store(uri).above.uri)
    return folder


def _report(console: Console, result: Any, margin: float, attempt: Attempt, form: Form) -> int:
    """Print how a study ended; return the exit code."""
    if form == "json":
        print(result.line)
    # Of which `--json` keeps the usual one to itself.
    output = sys.stderr if form == "json" else sys.stdout
    if form != "shown":
        console = Console(quiet=True)
    from tune.report.failing import failure_groups
    from tune.report.table import closing_table, cost_table

    for path in result.files:
        say(console, f"wrote {path}")
    for line in result.skipped:
        say(console, f"skipped {line}")
    if result.confirmed:
        console.print(closing_table(result.confirmed, result.verdict.row, margin))
        console.print(cost_table(result.confirmed))
    trials = list(result.state.trials.values())
    failed = [trial for trial in trials if trial.status == "failed"]
    why = None
    if result.halted is not None:
        why = f"stopped after trials failed one after another for one reason: {result.halted}"
    elif result.finished and len(failed) == len(trials):
        reason = failed[0].reason if failed else "no trial was started"
        why = f"every trial failed, the first because: {reason}"
    if why is not None:
        print(
            f"{program()}: {why.rstrip('.')}. Mend its cause, then go on with: {attempt.way_on}",
            file=sys.stderr,
        )
        return EXIT_FAILED
    if not result.finished:
        print(f"Interrupted. Go on with: {attempt.way_on}", file=output)
        return EXIT_INTERRUPTED
    for group in failure_groups(result.state):
        say(console, group.line)
    for line in result.evidence:
        say(console, line)
    if form == "quiet":
        print(result.verdict.text, result.page or "", sep="\n")
    say(console, result.verdict.text)
    for line in result.ways_on:
        say(console, line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
