"""The conditions under which a study's numbers hold, for captions and for the end of a report."""

from collections.abc import Mapping
from typing import Any

from tune.report.facts import Facts

LISTED = ("processor", "cores", "device", "compute_dtype", "system", "python")


def one_line(facts: Facts) -> str:
    """Return every condition of a figure in one sentence."""
    config, recipe, state = facts.config, facts.config.recipe, facts.state
    ended = sum(trial.status not in ("running", "paused") for trial in state.of_role("search"))
    searched = f"{ended} trials, {config.searcher} with {config.scheduler}, seed {config.seed}; "
    started = any(trial.reference is not None for trial in state.trials.values())
    tuning = recipe.tuning
    trained = f"{recipe.max_steps} steps of {recipe.batch_size} at {recipe.learning_rate:g}"
    if started:
        trained += f" from nothing, {tuning.max_steps} at {tuning.learning_rate:g} from a reference"
    splits = facts.splits
    return (
        f"{config.model} on {config.task}, space {config.space}: {searched if ended else ''}"
        f"{trained}, at most {recipe.max_length} tokens; {splits['validation']:,} validation and "
        f"{splits['test']:,} test sequences; {_device(facts)}"
    )


def _device(facts: Facts) -> str:
    if not facts.runs:
        return "an unknown machine"
    machine = facts.runs[-1]["machine"]
    return f"{machine['device']} in {machine['compute_dtype']}"


def conditions(facts: Facts) -> Mapping[str, str]:
    """Return all that is needed to repeat a study, by what it is."""
    found = {
        "command": command(facts),
        "splits": (
            f"{facts.splits['train']:,} train, {facts.splits['validation']:,} validation, "
            f"{facts.splits['test']:,} test; {facts.splits['source']}"
        ),
        "time": f"{facts.seconds / 60:.0f} minutes, as of its log",
    }
    for number, run in enumerate(facts.runs, start=1):
        versions = ", ".join(f"{name} {v}" for name, v in run["versions"].items() if v is not None)
        machine: Mapping[str, Any] = run["machine"]
        listed = ", ".join(f"{name} {machine[name]}" for name in LISTED if name in machine)
        which = f" of run {number}" if len(facts.runs) > 1 else ""
        found[f"versions{which}"] = versions
        found[f"machine{which}"] = listed
        found[f"commit{which}"] = run["commit"] or "unknown"
    return found


def command(facts: Facts) -> str:
    """Return the command that begins such a study, as far as its flags differ from the usual."""
    config = facts.config
    flags = {
        "--space": config.space,
        "--model": config.model,
        "--task": config.task,
        "--data": config.data,
        "--budget": config.budget,
        "--seed": config.seed,
        "--quant-backend": None if config.quant_backend == "auto" else config.quant_backend,
        "--max-memory": config.max_memory_bytes and f"{config.max_memory_bytes}B",
        "--max-steps": config.recipe.max_steps,
        "--tune-steps": config.recipe.tune_steps,
        "--batch-size": config.recipe.batch_size,
        "--max-length": config.recipe.max_length,
        "--learning-rate": f"{config.recipe.learning_rate:g}",
        "--eval-sequences": config.eval_sequences,
        "--margin": f"{config.margin:g}",
    }
    given = " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)
    return f"python run_search.py {given}"
