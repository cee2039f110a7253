"""Waiting for what must come. The limit is for what hangs: no test is one of speed by it."""

import subprocess
import time
from collections.abc import Callable

HANGS_SECONDS = 900.0


def until(reached: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Return once something is reached, or a process has ended, which is killed if it hangs."""
    deadline = time.monotonic() + HANGS_SECONDS
    while not reached() and (process is None or process.poll() is None):
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            raise AssertionError(f"not reached in {HANGS_SECONDS:.0f} s")
        time.sleep(0.02)


def output_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a process printed until its end; it is killed if it hangs."""
    try:
        return process.communicate(timeout=HANGS_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
