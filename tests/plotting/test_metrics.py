import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.plotting.metrics import draw_metrics, metric_lines
from common.training.history import Series
from tests.conftest import ROOT
from tests.plotting.folders import texts_of


def make_series(values):
    return Series(np.arange(len(values)) * 50, np.asarray(values, dtype=np.float32))


def test_files(tmp_path):
    """A pattern's metrics are in one figure; other metrics have one of their own."""
    metrics = {"a": make_series([1.0, 2.0]), "x": make_series(np.ones(90_000)), "y": make_series([5.0, 2.0])}
    draw_metrics(metric_lines({"validation": metrics}, {"two": "x|y", "none": "z"}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"two.png", "a.png"}
    assert imread(tmp_path / "a.png").shape[:2] == (480, 640)


def test_non_finite_values_are_ignored(tmp_path):
    series = {"a": make_series([1.0, np.nan, 3.0, np.inf]), "b": make_series([np.nan])}
    lines = metric_lines({"train": series}, {"m": "a|b"})
    points = {name: list(zip(*map(np.ndarray.tolist, line), strict=True)) for name, line in lines["m"].items()}
    assert points == {"train_a": [(0, 1.0), (100, 3.0)], "train_b": []}
    draw_metrics(lines, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_figure_does_not_depend_on_previous_figures(tmp_path):
    """The axes are used again: lines must be removed, and limits reset even if a run has no finite values."""

    def draw_all(*figures):
        for lines in figures:
            (name,) = lines
            stalled = 100 if "stalled" in name else None
            draw_metrics({name.removesuffix("_stalled"): lines}, tmp_path, stalled)
        return (tmp_path / f"{name}.png").read_bytes()

    epochs = np.arange(0, 500, 50)
    nothing, some = {"loss": (epochs[:0], np.zeros(0))}, {"loss": (epochs, epochs * 3.0)}
    positive, ranks = {"mse_loss": (epochs, 10.0 ** -(epochs / 50))}, {"e2e_rank": (epochs, epochs * 0 + 1.0)}
    stalled = {"mse_loss_stalled": positive["mse_loss"]}
    for each in (nothing, some, positive, ranks):
        alone = draw_all(each)
        assert alone == draw_all(some, positive, ranks, stalled, each)
        assert alone == draw_all(nothing, each)


@pytest.mark.parametrize(
    "name, last, scale",
    [("sse_loss_div_2", 1e-4, "log"), ("mse_loss", 0.0, "linear"), ("norm", 1e-4, "linear")],
)
def test_losses_are_on_logarithmic_axes_if_positive(name, last, scale, tmp_path, monkeypatch):
    """A line marks the epoch from which on a run stood still."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **style: figures.append(figure))
    draw_metrics(metric_lines({"validation": {name: make_series([1.0, last])}}, {}), tmp_path, stalled=50)
    (axes,) = figures[0].axes
    assert axes.get_yscale() == scale
    assert texts_of(axes.get_legend()) == [f"validation_{name}", "stalled"]
    assert list(axes.lines[-1].get_xdata()) == [50, 50]


def test_user_settings_have_no_effect(tmp_path):
    """The worker process that draws must not fail, or draw something else, because of them."""
    code = """if True:
        import sys, numpy as np
        from pathlib import Path
        from common.plotting.metrics import draw_metrics
        assert not {"torch", "matplotlib"} & set(sys.modules)
        draw_metrics({"a": {"train_a": (np.arange(3), np.arange(3.0))}}, Path(sys.argv[1]))
        assert "matplotlib.pyplot" not in sys.modules
    """
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\naxes.grid: True\n")
    pictures = []
    for changed in ({}, {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(tmp_path)}):
        command, environment = [sys.executable, "-c", code, str(tmp_path)], {**os.environ, **changed}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        pictures.append((tmp_path / "a.png").read_bytes())
    assert pictures[0] == pictures[1]
