"""Answers and predicted classes as short texts, for the event log."""

from collections.abc import Sequence


def pack_answers(scores: Sequence[float]) -> str:
    """Return right (1) and wrong (0) answers as hexadecimal digits, four a digit.

    A leading 1 keeps the zeros behind it.
    """
    return format(int("1" + "".join("1" if score else "0" for score in scores), 2), "x")


def unpack_answers(text: str) -> tuple[float, ...]:
    """Return what `pack_answers` packed."""
    return tuple(float(bit) for bit in format(int(text, 16), "b")[1:])


def pack_classes(classes: Sequence[int]) -> str:
    """Return classes as `K:hex`: the digits of one number in base K, behind a leading 1.

    K is one more than the largest class, and at least 2. No classes give an empty text.
    """
    if not classes:
        return ""
    base = max(2, max(classes) + 1)
    number = 1
    for label in classes:
        number = number * base + label
    return f"{base}:{number:x}"


def unpack_classes(text: str) -> tuple[int, ...]:
    """Return what `pack_classes` packed."""
    if not text:
        return ()
    base, digits = text.split(":")
    number, classes = int(digits, 16), []
    while number > 1:
        number, label = divmod(number, int(base))
        classes.append(label)
    return tuple(reversed(classes))
