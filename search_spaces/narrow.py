"""Narrows what the modules of a searched space may take to some bits and ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from search_spaces.spaces import PerModule, Space


def narrowed(
    space: Space, bits: Sequence[int] | None = None, ranks: Sequence[int] | None = None
) -> Space:
    """Return the space in which modules take only these bits and ranks.

    A module that has none of them keeps its own: an embedding has no adapter, and a backend may
    keep it in 16 bits only.

    Args:
        space: A searched one.
        bits: Some of what its target modules have; None for all of them.
        ranks: The same of ranks.

    Raises:
        ValueError: The space is fixed, or no target module has one of the values.
    """
    return replace(
        space,
        bits=space.bits if bits is None else _kept(space, "--bits", space.bits, bits),
        ranks=space.ranks if ranks is None else _kept(space, "--ranks", space.ranks, ranks),
    )


def fewer_bits(space: Space) -> Iterator[Space]:
    """Yield the space without its highest bits, then without the next, while two widths stay."""
    widths = target_bits(space)
    for count in range(len(widths) - 1, 1, -1):
        yield narrowed(space, widths[:count])


def target_bits(space: Space) -> tuple[int, ...]:
    """Return the bits that some target module of a searched space may take, ascending."""
    return _options(space, space.bits)


def _kept(
    space: Space, flag: str, options: PerModule, values: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    if space.fixed:
        raise ValueError(
            f"`{flag}` must go with a searched space, got --space {space.name}. "
            "Leave it out, or use joint, bits or rank."
        )
    known = _options(space, options)
    for value in values:
        if value not in known:
            raise ValueError(
                f"`{flag}` must be some of {', '.join(map(str, known))} in --space {space.name} "
                f"with --quant-backend {space.formats.backend}, got {value}. Use some of those."
            )
    return {
        name: tuple(value for value in own if value in values) or own
        for name, own in options.items()
    }


def _options(space: Space, options: PerModule) -> tuple[int, ...]:
    """Return what some target module may take, ascending."""
    every = (value for module in space.inventory.targets for value in options[module.name])
    return tuple(sorted(set(every)))
