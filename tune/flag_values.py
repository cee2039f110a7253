"""How the values of flags are read, with an error that names the flag, the value and the rule."""

import argparse
from typing import Any

from search_spaces.costs import parse_bytes


def whole(flag: str) -> Any:
    """Return what reads a whole number."""

    def parse(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"`{flag}` must be a whole number, got {text!r}. Write for example {flag} 50."
            ) from None

    return parse


def number(flag: str) -> Any:
    """Return what reads a number."""

    def parse(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"`{flag}` must be a number, got {text!r}. Write for example {flag} 2."
            ) from None

    return parse


def memory(flag: str) -> Any:
    """Return what reads bytes with a unit."""

    def parse(text: str) -> int:
        try:
            return parse_bytes(text, flag)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def cache_limit(text: str) -> int:
    """Return the bytes that caches may keep."""
    return 0 if text == "0" else int(memory("--caches")(text))


def whole_list(flag: str, example: str) -> Any:
    """Return what reads whole numbers with commas between, each once, sorted."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            return tuple(sorted({int(part) for part in text.split(",")}))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"`{flag}` must be whole numbers with commas between, got {text!r}. "
                f"Write for example {flag} {example}."
            ) from None

    return parse


def device(text: str) -> str | None:
    """Return the name of a device; None for the fastest."""
    return None if text == "auto" else text


def when(text: str) -> bool | None:
    """Return whether gradient checkpointing is on; None where the planner decides."""
    known = {"auto": None, "on": True, "off": False}
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"`--gradient-checkpointing` must be auto, on or off, got {text!r}. Use one of those."
        )
    return known[text]
