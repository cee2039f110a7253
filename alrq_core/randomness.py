"""A stream of random numbers of its own for each trial, whatever else draws in the process."""

from collections.abc import Callable
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

Read = Callable[[], Tensor]
Write = Callable[[Tensor], None]


class Randomness:
    """Torch's global generators, put into one trial's state while the trial runs.

    Attributes:
        states: State of the CPU's generator and, on an accelerator, of the device's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """Start a stream; the global generators stay as they are."""
        self._generators: list[tuple[Read, Write]] = [(torch.get_rng_state, torch.set_rng_state)]
        if device.type == "cuda":
            read, write = torch.cuda.get_rng_state, torch.cuda.set_rng_state
            self._generators.append((partial(read, device), partial(write, device=device)))
        elif device.type == "mps":
            self._generators.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
        before = self._current()
        torch.manual_seed(seed)
        self.states = self._current()
        self._set(before)

    def __enter__(self) -> None:
        self._before = self._current()
        self._set(self.states)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.states = self._current()
        self._set(self._before)

    def _current(self) -> list[Tensor]:
        return [read() for read, _ in self._generators]

    def _set(self, states: list[Tensor]) -> None:
        for (_, write), state in zip(self._generators, states, strict=True):
            write(state)
