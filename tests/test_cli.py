import signal
import subprocess
import sys
from argparse import SUPPRESS

import pytest

from common.cli import Parser, UserError, flag_errors
from common.flags import integer, optional, part_of_name, real
from common.signals import signals_noted
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def parser():
    parser = Parser("description", "100% of the end")
    parser.add_argument("-size", type=integer(1), default=3, help="help")
    parser.add_argument("-rate", type=real(), default=0.5, help="help")
    parser.add_argument("-kind", choices=["a", "b"], default="a", help="help")
    parser.inputs.add_argument("-name", type=optional(part_of_name), default="", help="help")
    parser.outputs.add_argument("-quick", action="store_true", help="help")
    pairs = {"nargs": 2, "action": "append", "default": [], "metavar": ("I", "J")}
    parser.outputs.add_argument("-entry", type=integer(0), **pairs, help="help")
    parser.places.add_argument("-values", type=real(), nargs="+", default=[], help="help")
    return parser


DEFAULTS = {"size": 3, "rate": 0.5, "kind": "a", "name": "", "quick": False, "entry": [], "values": []}


def test_defaults_and_given_flags(parser):
    parameters = parser.parse(["-quick", "--rate", "0.5"])
    assert parameters.values == {**DEFAULTS, "quick": True}
    assert parameters.given == {"quick", "rate"}
    assert parser.parse([]).values == DEFAULTS


def test_forms_of_flags(parser):
    assert parser.parse(["-size", "4", "--size", "5", "-size=6"])["size"] == 6
    assert parser.parse(["--size=5e6", "-rate=-2e-1"]).values == {**DEFAULTS, "size": 5_000_000, "rate": -0.2}
    parameters = parser.parse(["-entry", "0", "1", "-entry", "2", "3", "-values", "-1", "-2e-3", "-.5", "4"])
    assert parameters["entry"] == [[0, 1], [2, 3]]
    assert parameters["values"] == [-1, -2e-3, -0.5, 4]


def test_short_form_of_a_flag():
    parser = Parser()
    parser.add_argument("-kind", choices=["a", "b", "c"], default="a", help="help")
    short = {"action": "store_const", "dest": "kind", "const": "b", "default": SUPPRESS}
    parser.add_argument("-quick", **short, help="short form of -kind b")
    for words in (["-quick"], ["-kind", "b"], ["-kind", "b", "--quick"], ["-quick", "-kind=b"]):
        parameters = parser.parse(words)
        assert (parameters.values, parameters.given) == ({"kind": "b"}, {"kind"})
    for words in (["-kind", "a", "-quick"], ["-quick", "--kind=c"]):
        with pytest.raises(UserError, match=r"-quick: contradicts -kind [ac]; give only one of the two"):
            parser.parse(words)
    assert parser.parse(parser.words({"quick": True}))["kind"] == "b"
    assert parser.parse(parser.words({"quick": False}))["kind"] == "a"
    assert parser.parse(parser.words({"quick": False, "kind": "c"}))["kind"] == "c"
    with pytest.raises(UserError, match="-quick False: contradicts -kind b; leave it out"):
        parser.words({"quick": False, "kind": "b"})


@pytest.mark.parametrize(
    "words, message",
    [
        (["-size", "0"], "-size 0: must be an integer of at least 1"),
        (["-size", "inf"], "-size inf: must be an integer"),
        (["-rate"], "-rate: expected one argument; -h lists the flags"),
        (["-xyz=3"], "-xyz=3: unknown flag; -h lists the flags"),
        (["-quick", "yes"], "-quick yes: takes no value; give -quick alone, or leave it out"),
        (["-size", "4", "5"], "5: belongs to no flag; -h lists the flags"),
    ],
)
def test_error_messages(parser, words, message):
    with pytest.raises(UserError) as error:
        parser.parse(words)
    assert str(error.value).startswith(message)


def test_words_of_dictionary(parser):
    values = {"size": 4, "rate": -2e-7, "quick": True, "entry": [[0, 1], (2, 3)], "values": [1, -2.5], "name": "-x"}
    parameters = parser.parse(parser.words(values))
    assert parameters.values == {**DEFAULTS, **values, "entry": [[0, 1], [2, 3]]}
    assert parameters.given == values.keys()
    assert parser.parse(parser.words({"entry": [4, 5], "quick": False}))["entry"] == [[4, 5]]
    assert parser.parse(parser.words({"entry": [], "size": 5e6})).values == {**DEFAULTS, "size": 5_000_000}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": True}, "-size True: must be an integer"),
        ({"size": None}, "-size None: must be a number or a string"),
        ({"quick": 1}, "-quick 1: must be True or False"),
        ({"entry": [[0, None]]}, "-entry [[0, None]]: must be a list of lists of 2 values, such as [[0, 0]]"),
        ({"experiment_size": 5}, "-experiment_size 5: unknown flag; did you mean -size?"),
    ],
)
def test_invalid_dictionary_values(parser, wrong, message):
    with pytest.raises(UserError) as error:
        parser.parse(parser.words(wrong))
    assert str(error.value).startswith(message)


def test_help_shows_types_and_defaults(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    lines = "-size INTEGER help (default: 3)", "-rate REAL help (default: 0.5)", "-kind {a,b} help (default: a)"
    lines += "-name NAME help (default: none)", "-quick help (default: off)", "-entry I J help (default: none)"
    assert all(expected in shown for expected in (*lines, "100% of the end"))


def test_unreadable_file_is_named_with_its_flag(tmp_path):
    missing = tmp_path / "x"
    expected = r"^-name .*x: cannot be read: No such file or directory; give a readable file$"
    with pytest.raises(UserError, match=expected), flag_errors("name", missing):
        missing.read_text()


def test_second_signal_ends_the_process():
    code = "import signal, common.signals as signals; signals._REPEATED_SIGNAL_SECONDS = -1\n"
    code += "with signals.signals_noted(): signal.raise_signal(2); print('noted', flush=True); signal.raise_signal(15)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("noted\n", -signal.SIGTERM)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_noted() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)
