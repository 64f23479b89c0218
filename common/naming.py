"""Numbers in names and labels."""

from collections.abc import Collection
from decimal import Decimal


def scientific(number: float) -> str:
    """Returns 0.001 as 1e-3 and 0.0025 as 2.5e-3, with the fewest digits that identify the number."""
    return f"{Decimal(repr(float(number))).normalize():e}".replace("e+", "e")


def span(numbers: Collection[int]) -> str:
    """Returns the smallest and the largest of some numbers as text, such as "50 to 511"; once if they are equal."""
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))
