import subprocess
import sys

import numpy as np
from matplotlib.image import imread

from common.plotting.metrics import _figure, draw_metrics, metric_lines
from common.training.history import Series
from tests.conftest import ROOT


def series(values):
    return Series(np.arange(len(values)) * 50, np.asarray(values, dtype=np.float32))


def draw(train, validation, figures, directory):
    draw_metrics(metric_lines({"train": train, "validation": validation}, figures), directory)


def test_each_figure_shows_its_own_lines(tmp_path):
    """One figure serves for all: nothing of a plot may be left in the next one."""
    train = {"a": series(np.linspace(0, 1, 10))}
    validation = {"x": series(np.ones(90_000)), "y": series([5.0, 2.0])}
    draw(train, validation, {"one": "a", "two": "x|y", "none": "z"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}
    draw(train, validation, {"two": "x|y"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png", "a.png"}
    pixels = {name: imread(tmp_path / f"{name}.png") for name in ("one", "two", "a")}
    draw(train, validation, {"alone": "a"}, tmp_path)
    assert pixels["one"].shape[:2] == (480, 640)
    assert (pixels["one"] != pixels["two"]).any()
    label = np.s_[:, 60:]  # the label beside the axis is the figure's name
    assert (pixels["one"][label] == pixels["a"][label]).all()
    assert (pixels["one"][label] == imread(tmp_path / "alone.png")[label]).all()


def test_what_is_not_finite_is_left_out(tmp_path):
    draw({}, {"a": series([1.0, np.nan, np.inf]), "b": series([np.nan])}, {"m": "a|b"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_many_lines_have_a_legend_of_the_first_and_the_last(tmp_path):
    draw({}, {f"v{k}": series([float(k), k + 1.0]) for k in range(50)}, {"all": r"v\d+"}, tmp_path)
    (axes,) = _figure().axes
    assert len(axes.lines) == 50
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["validation_v0", "validation_v49"]


def test_a_figure_does_not_depend_on_those_before(tmp_path):
    """A run that diverges at once has nothing finite to draw: no limits of its own."""

    def drawn(*figures):
        for lines in figures:
            draw_metrics({"figure": lines}, tmp_path)
        return (tmp_path / "figure.png").read_bytes()

    epochs = np.arange(0, 500, 50)
    nothing = {"train_loss": (epochs[:0], np.zeros(0))}
    some = {"train_loss": (epochs, epochs * 3.0)}
    assert drawn(nothing) == drawn(some, nothing)
    assert drawn(some) == drawn(nothing, some)


def test_neither_torch_nor_matplotlib_is_imported_before_something_is_drawn():
    code = "import sys, common.plotting.metrics; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
