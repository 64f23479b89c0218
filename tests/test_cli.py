import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import Flag, UserError, integer, parse_flags, real, text

FLAGS = [
    Flag("size", 3, "help", integer(1)),
    Flag("rate", 0.5, "help", real()),
    Flag("name", "", "help", text),
    Flag("quick", False, "help", switch=True),
    Flag("entry", [], "help", integer(0), num_values=2, repeatable=True, metavar=("I", "J")),
    Flag("values", [], "help", real(), num_values="+"),
]


def parsed(*words):
    return parse_flags(FLAGS, "description", words)


def test_defaults_and_what_was_given():
    parameters = parsed("-quick", "--rate", "0.5")
    assert parameters.values == {"size": 3, "rate": 0.5, "name": "", "quick": True, "entry": [], "values": []}
    assert parameters.given == {"quick", "rate"}


def test_one_dash_or_two_and_the_last_one_holds():
    assert parsed("-size", "4", "--size", "5", "-size=6")["size"] == 6


def test_repeatable_and_negative_values():
    parameters = parsed("-entry", "0", "1", "-entry", "2", "3", "-values", "-1", "-2e-3", "-.5", "4")
    assert parameters["entry"] == [[0, 1], [2, 3]]
    assert parameters["values"] == [-1, -2e-3, -0.5, 4]


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_understood(number):
    assert parsed("-rate", repr(number))["rate"] == number


@given(number=st.integers(1, 2**70))
def test_every_integer_is_understood(number):
    assert parsed("-size", str(number))["size"] == number


def test_integers_may_be_written_as_powers_of_ten():
    assert parsed("-size", "5e6")["size"] == 5_000_000


@pytest.mark.parametrize("value", [True, "1.5", None, [], 2.5])
def test_values_of_a_wrong_type_are_refused(value):
    with pytest.raises(UserError, match="must be an integer of at least 1"):
        FLAGS[0].checked(value)


@pytest.mark.parametrize("value", ["0 1", [0, 1], [[0, 1, 2]], 5])
def test_lists_of_a_wrong_shape_are_refused(value):
    with pytest.raises(UserError, match=r"must be a list|takes 2 values"):
        FLAGS[4].checked(value)
