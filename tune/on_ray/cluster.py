"""Starts Ray on this machine, with workers that get ready while the driver prepares a study."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import ray

from alrq_core.memory.cores import MOST_TRIALS, usable_cores
from tune.mistakes import said

OBJECT_STORE_BYTES = 300 * 10**6
# Ray's snapshots and loggers repeat what the event log keeps. How many trials wait is decided by
# `Places`: of Ray's own limit so many workers start at a time, 200 on a large cluster.
RAY_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
}
# What each worker imports as soon as its process runs, in this order.
PRELOADED = {"RAY_preload_python_modules": "tune.on_ray.warm,tune.on_ray.workers"}
ANSWER_SECONDS = 5.0
# A folder for each card.
NVIDIA_CARDS = Path("/proc/driver/nvidia/gpus")


@contextmanager
def ray_started(
    address: str | None, device: str | None = None, trials_per_gpu: int | None = None
) -> Iterator[None]:
    """Start Ray on this machine or join a cluster, and leave it again.

    It takes seconds, in which another thread imports what the driver needs next.

    Args:
        address: Of the cluster; None for this machine.
        device: Where trials will train; None for the fastest.
        trials_per_gpu: As asked for; None where that isn't decided yet.

    Raises:
        ValueError: Ray can't start here, or there is no such cluster.
    """
    os.environ.update(RAY_SETTINGS)
    os.environ.update(worker_environment())
    logging.getLogger("ray").setLevel(logging.ERROR)
    importing = Thread(target=import_module, args=("tune.on_ray.warm",))
    importing.start()
    try:
        if address is None:
            _start_here(_workers(device, trials_per_gpu or MOST_TRIALS))
        else:
            _join(address)
        # Two threads that import transformers at once can each see the other's half of it.
        importing.join()
        yield
    finally:
        ray.shutdown()
        # No import can end once Python itself is ending.
        importing.join()


def _join(address: str) -> None:
    try:
        _check_answers(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": worker_environment()},
        )
    except Exception as error:
        # Ray has no class for it, and raises plain exceptions too.
        raise ValueError(
            f"`--address` must be a Ray cluster that answers, got {address!r} ({said(error)}). "
            "Start one with `ray start --head`, or leave the flag out to use this machine."
        ) from error


def _check_answers(address: str) -> None:
    """Ask the address for a connection: Ray tries for minutes where nobody listens."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is not None and parts.port is not None:
        socket.create_connection((parts.hostname, parts.port), ANSWER_SECONDS).close()


def _workers(device: str | None, trials_per_gpu: int) -> int:
    """Return how many processes wait for trials: one a core, and no more than can share the GPUs.

    They must be ready. Tune gives a trial that waits for a new worker the first one that is free,
    and ends the new one: where rungs take less time than a worker's start, only one ever runs.
    """
    cards = len(list(NVIDIA_CARDS.iterdir())) if NVIDIA_CARDS.is_dir() else 0
    if not cards or device == "cpu":
        return usable_cores()
    return min(usable_cores(), trials_per_gpu * cards)


def _start_here(workers: int) -> None:
    os.environ.update(PRELOADED)
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    except Exception as error:
        place = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
        raise ValueError(
            f"`RAY_TMPDIR` must be a folder with a short path and space left, in which Ray can "
            f"start, got {place!r} ({said(error)}). Set it to another one, such as /tmp."
        ) from error


def worker_environment() -> dict[str, str]:
    """Return the variables of workers: one thread, little chatter, small caches, the hub's keys."""
    names = ("HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return passed | {
        # Libraries read them once, when they are loaded; what a trial does in torch has one
        # thread in any case.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        # Each batch has its own length; the default of 1024 kept shapes costs 0.5 GB a worker.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    }
