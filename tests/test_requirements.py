"""What is installed by README's commands is what was tested."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def named(requirements: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in requirements]
    found = {canonicalize_name(requirement.name): requirement for requirement in parsed}
    assert len(found) == len(parsed)
    return found


PINS = named(lines("constraints.txt"))


def test_requirements_install_the_project_with_its_pins_and_nothing_else() -> None:
    assert lines("requirements.txt") == ["-c constraints.txt", "-e ."]


def test_every_package_of_the_main_job_and_of_the_tests_is_pinned() -> None:
    asked = {*named(PROJECT["dependencies"]), *named([*EXTRAS["dev"], *EXTRAS["wandb"]])}
    assert asked <= set(PINS)


def test_nothing_is_pinned_that_nobody_asks_for() -> None:
    asked = set(named(PROJECT["dependencies"])).union(*map(named, EXTRAS.values()))
    assert set(PINS) <= asked


def test_pins_are_exact_and_allowed_by_the_project() -> None:
    wanted = named(PROJECT["dependencies"])
    for extra in EXTRAS.values():
        wanted |= named(extra)
    for name, pin in PINS.items():
        if name == "torch":
            continue
        [specifier] = pin.specifier
        assert specifier.operator == "=="
        assert wanted[name].specifier.contains(specifier.version), name


def test_torch_has_a_range_in_the_pins_and_no_upper_bound_in_the_project() -> None:
    assert str(PINS["torch"].specifier) == "<2.14,>=2.11"
    assert str(named(PROJECT["dependencies"])["torch"].specifier) == ">=2.11"


def test_the_licence_is_named_and_there() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    [file] = PROJECT["license-files"]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
