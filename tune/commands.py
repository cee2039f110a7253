"""What the program does instead of running a study: shows, writes and exports what studies found.

Imports follow the checks that need them, so that mistakes answer at once.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from tune.flags import Form

# Takes the console, the flags and how it prints; returns the exit code.
Command = Callable[[Console, dict[str, Any], Form], int]


def command_of(given: Mapping[str, Any], form: Form, dry_run: bool) -> Command | None:
    """Return what the flags ask for, where that is no study to run.

    Raises:
        ValueError: Events shall be printed of what has none.
    """
    flag = next((flag for flag in COMMANDS if flag in given), None)
    without = "dry-run" if dry_run else flag
    if form == "json" and without not in (None, "watch"):
        raise ValueError(
            "`--json` must go with a study that runs, or --watch, whose events it prints, got it "
            f"with --{without}. Leave one of them out."
        )
    return None if flag is None else COMMANDS[flag]


def say(console: Console, line: str) -> None:
    """Print a line as it is: brackets in it are no markup, and it is not cut."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def keep_caches_small(console: Console, limit: int | None) -> None:
    """Remove from the caches what was unused longest, until the rest fits; say what was."""
    from tune.report.caches import removed_line

    if (line := removed_line(limit)) is not None:
        say(console, line)


def _export(console: Console, given: dict[str, Any], _: Form) -> int:
    """Write one trial of a study; return the exit code."""
    study = given.pop("export")
    from tune.study.config import PLACES, resumed_config

    places = {key: given.pop(key) for key in PLACES & set(given)}
    form, address = given.pop("form", "alrq"), given.pop("address", None)
    if set(given) != {"trial", "to"}:
        raise ValueError(
            "`--export` must come with --trial and --to (and with --model or --data where they "
            f"have moved), got {', '.join(sorted(given)) or 'neither'}. "
            "Write for example --export results/studies/NAME --trial t007 --to my-model."
        )
    from tune.study.folders import check_new_folder

    target = Path(given["to"])
    check_new_folder("--to", target)
    from tune.report.exporting import check_export, find_export

    check_export(form, target)
    folder, trial = Path(study), given["trial"]
    config = resumed_config(folder, places)
    if address is None:
        found = find_export(folder, trial, config, form)
        found.write(target)
    else:
        from tune.on_ray.cluster import ray_started
        from tune.on_ray.nodes import hosts

        with ray_started(address):
            from tune.on_ray.exporting import export_on_node

            recipe = config.recipe
            able = hosts(recipe.device, recipe.cpu_dtype, partial(say, console))
            found = find_export(folder, trial, config, form, able)
            export_on_node(found, target)
    way = f"alrq_core.load({given['to']!r})" if form == "alrq" else "the lines in its README.md"
    print(f"wrote {found.trial} to {given['to']}. Load it with: {way}")
    return 0


def _watch(console: Console, given: dict[str, Any], form: Form) -> int:
    """Show a study that another process runs; return the exit code."""
    study = Path(_alone("watch", given))
    from tune.report.watch import watch

    worked = watch(study, console, form)
    if form == "shown":
        when = "any longer" if worked else "now"
        say(console, f"Nobody works on {study} {when}. Its report: --report {study}")
    return 0


def _pages(console: Console, given: dict[str, Any], _: Form) -> int:
    """Write the report of a study, or a comparison of several; return the exit code."""
    flag = "report" if "report" in given else "compare"
    value = _alone(flag, given)
    if flag == "compare":
        from tune.report.page.compare import write_comparison

        say(console, f"wrote {write_comparison([Path(study) for study in value])}")
        return 0
    from tune.report.page.page import write_report

    say(console, f"wrote {write_report(Path(value))}, and its figures")
    return 0


def _alone(flag: str, given: dict[str, Any]) -> Any:
    """Return the value of a flag with which no other goes."""
    value = given.pop(flag)
    if given:
        raise ValueError(
            f"`--{flag}` must stand alone, got it with {len(given)} other flags. Leave them out."
        )
    return value


def _caches(console: Console, given: dict[str, Any], _: Form) -> int:
    """Show what the caches hold, after removing what is above a limit; return the exit code."""
    from tune.report.caches import caches_shown

    limit = _alone("caches", given)
    if limit is not None:
        keep_caches_small(console, limit)
    line, table = caches_shown()
    say(console, line)
    console.print(table)
    return 0


COMMANDS: Mapping[str, Command] = {
    "watch": _watch,
    "export": _export,
    "report": _pages,
    "compare": _pages,
    "caches": _caches,
}
