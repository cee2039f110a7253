"""A stream of random numbers of its own for each trial, whatever else draws in the process."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor


class Randomness:
    """Torch's global generators, put into one trial's state while the trial runs.

    Attributes:
        states: State of the CPU's generator and, on a GPU, of the device's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """Start a stream; the global generators stay as they are."""
        self._devices = [device] if device.type == "cuda" else []
        self._fork: Any = None
        with torch.random.fork_rng(self._devices):
            torch.manual_seed(seed)
            self.states = self._current()

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(self._devices)
        self._fork.__enter__()
        torch.set_rng_state(self.states[0])
        for device, state in zip(self._devices, self.states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.states = self._current()
        self._fork.__exit__(kind, error, trace)

    def _current(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._devices)]
