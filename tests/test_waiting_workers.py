"""Trials start in the workers that wait for them, as long as Ray has the names that this needs."""

from importlib import import_module

import pytest
from ray.tune.execution import class_cache

from tune.on_ray import run


class Worker:
    """What Tune would run."""


def workers_environment() -> dict[str, str]:
    """Return the variables that Tune gives to a new worker."""
    options = class_cache._ActorClassCache().get(Worker)._default_options
    variables: dict[str, str] = options["runtime_env"].get("env_vars", {})
    return variables


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, _ in run.REPLACED:
        monkeypatch.setattr(f"{module}.{name}", getattr(import_module(module), name))


@pytest.mark.parametrize(("module", "name"), [entry[:2] for entry in run.REPLACED])
def test_ray_has_the_names_that_are_replaced(module: str, name: str) -> None:
    """Without them trials start some 10 s later: look for what has taken their place."""
    assert hasattr(import_module(module), name)


def test_tune_asks_for_no_other_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret")
    assert workers_environment() == {"PL_DISABLE_FORK": "1", "AWS_SESSION_TOKEN": "secret"}
    run._start_in_waiting_workers()

    assert workers_environment() == {}


def test_a_ray_without_these_names_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """That studies run so, the one on three nodes shows."""
    gone = [
        ("ray.tune.no_such_module", "NAME", {}),
        ("ray.tune.execution.no_such_module", "NAME", {}),
    ]
    monkeypatch.setattr(run, "REPLACED", gone)
    before = workers_environment()
    run._start_in_waiting_workers()

    assert workers_environment() == before != {}
