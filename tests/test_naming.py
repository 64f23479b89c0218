import pytest

from common.naming import scientific


@pytest.mark.parametrize(
    "number, written",
    [(1e-3, "1e-3"), (0.0025, "2.5e-3"), (1, "1e0"), (0.1, "1e-1"), (1234.5, "1.2345e3"), (-0.5, "-5e-1"), (0, "0e0")],
)
def test_scientific(number, written):
    assert scientific(number) == written
