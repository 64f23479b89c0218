"""Numbers as they stand in names and labels."""

from decimal import Decimal


def scientific(number: float) -> str:
    """0.001 as 1e-3, 0.0025 as 2.5e-3: with as many digits as it takes to tell the number from others."""
    sign, digits, exponent = Decimal(repr(float(number))).normalize().as_tuple()
    mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if len(digits) > 1 else "")
    return f"{'-' if sign else ''}{mantissa}e{exponent + len(digits) - 1}"
