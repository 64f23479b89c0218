"""Numbers in names and labels."""

from decimal import Decimal


def scientific(number: float) -> str:
    """Returns 0.001 as 1e-3 and 0.0025 as 2.5e-3, with the fewest digits that identify the number."""
    return f"{Decimal(repr(float(number))).normalize():e}".replace("e+", "e")
