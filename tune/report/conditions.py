"""The conditions under which a study's numbers hold, for captions and for the end of a report."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tune.flags import build_parser
from tune.report.facts import Facts
from tune.study.config import StudyConfig

# Where a study ran and wrote is no part of what it was.
UNREPEATED = ("name", "output_dir", "address", "storage", "wandb")
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
    """Return the command that begins such a study: the flags that differ from the usual ones."""
    usual = _fields(StudyConfig()) | {"name": facts.config.name}
    given = {k: v for k, v in _fields(facts.config).items() if v is not None and v != usual.get(k)}
    words = ["python", "run_search.py"]
    for action in build_parser()._actions:
        if action.dest in given and action.dest not in UNREPEATED:
            words += _flag(action.option_strings, given[action.dest], action.dest)
    return shlex.join(words)


def _fields(config: StudyConfig) -> dict[str, Any]:
    content = config.to_json()
    recipe: dict[str, Any] = content.pop("recipe")
    return content | recipe


def _flag(names: Sequence[str], value: Any, field: str) -> list[str]:
    """Return a flag with its value as the command line takes it."""
    if isinstance(value, bool):
        if field == "gradient_checkpointing":
            return [names[0], "on" if value else "off"]
        return [names[0] if value else names[-1]]
    if isinstance(value, list | tuple):
        return [names[0], ",".join(map(str, value))]
    if field.endswith("_bytes"):
        return [names[0], f"{value}B"]
    return [names[0], f"{value:g}" if isinstance(value, float) else str(value)]
