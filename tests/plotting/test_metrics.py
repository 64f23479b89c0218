import os
import subprocess
import sys

import numpy as np
from matplotlib.image import imread

from common.plotting.metrics import draw_metrics, metric_lines
from common.training.history import Series
from tests.conftest import ROOT


def make_series(values):
    return Series(np.arange(len(values)) * 50, np.asarray(values, dtype=np.float32))


def draw_figures(train, validation, figures, directory):
    draw_metrics(metric_lines({"train": train, "validation": validation}, figures), directory)


def test_figures_do_not_share_lines(tmp_path):
    """The Figure object is reused, so lines of one plot must not appear in the next."""
    train = {"a": make_series(np.linspace(0, 1, 10))}
    validation = {"x": make_series(np.ones(90_000)), "y": make_series([5.0, 2.0])}
    draw_figures(train, validation, {"one": "a", "two": "x|y", "none": "z"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}
    draw_figures(train, validation, {"two": "x|y"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png", "a.png"}
    pixels = {name: imread(tmp_path / f"{name}.png") for name in ("one", "two", "a")}
    draw_figures(train, validation, {"alone": "a"}, tmp_path)
    assert pixels["one"].shape[:2] == (480, 640)
    assert (pixels["one"] != pixels["two"]).any()
    label = np.s_[:, 60:]  # excludes the axis label, which is the name of the figure
    assert (pixels["one"][label] == pixels["a"][label]).all()
    assert (pixels["one"][label] == imread(tmp_path / "alone.png")[label]).all()


def test_non_finite_values_are_ignored(tmp_path):
    series = {"a": make_series([1.0, np.nan, 3.0, np.inf]), "b": make_series([np.nan])}
    lines = metric_lines({"train": series}, {"m": "a|b"})
    points = {name: list(zip(*map(np.ndarray.tolist, line), strict=True)) for name, line in lines["m"].items()}
    assert points == {"train_a": [(0, 1.0), (100, 3.0)], "train_b": []}
    draw_metrics(lines, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_legend_of_many_lines(tmp_path):
    draw_figures({}, {f"v{k}": make_series([float(k), k + 1.0]) for k in range(50)}, {"all": r"v\d+"}, tmp_path)
    (axes,) = _figure().axes
    assert len(axes.lines) == 50
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["validation_v0", "validation_v49"]


def test_figure_does_not_depend_on_previous_figures(tmp_path):
    """Axis limits must be reset even if a run has no finite values."""

    def draw_all(*figures):
        for lines in figures:
            (name,) = lines
            stalled = 100 if "stalled" in name else None
            draw_metrics({name.removesuffix("_stalled"): lines}, tmp_path, stalled)
        return (tmp_path / f"{name}.png").read_bytes()

    epochs = np.arange(0, 500, 50)
    nothing = {"loss": (epochs[:0], np.zeros(0))}
    some = {"loss": (epochs, epochs * 3.0)}
    positive = {"mse_loss": (epochs, 10.0 ** -(epochs / 50))}
    ranks = {"e2e_rank": (epochs, epochs * 0 + 1.0)}
    stalled = {"mse_loss_stalled": positive["mse_loss"]}
    for each in (nothing, some, positive, ranks):
        alone = draw_all(each)
        assert alone == draw_all(some, positive, ranks, stalled, each)
        assert alone == draw_all(nothing, each)


def test_losses_are_on_logarithmic_axes_if_positive(tmp_path):
    values = {
        "sse_loss_div_2": [1.0, 1e-4],
        "mse_loss": [1.0, 0.0],
        "norm": [1.0, 1e-4],
        "reconstruction_error": [1, 0.1],
    }
    expected = {"sse_loss_div_2": "log", "mse_loss": "linear", "norm": "linear", "reconstruction_error": "log"}
    for name, of_metric in values.items():
        draw_figures({}, {name: make_series(of_metric)}, {}, tmp_path)
        assert _figure().axes[0].get_yscale() == expected[name]
    for ranks in ([1.0, 1.0, 2.0], [2.0, 2.0]):
        draw_figures({}, {"e2e_rank": make_series(ranks)}, {}, tmp_path)
        assert all(tick == round(tick) for tick in _figure().axes[0].get_yticks())


def test_stall_is_marked(tmp_path):
    lines = metric_lines({"train": {"mse_loss": make_series([1.0, 0.5, 0.5])}}, {})
    draw_metrics(lines, tmp_path, stalled=50)
    (axes,) = _figure().axes
    assert list(axes.lines[-1].get_xdata()) == [50, 50]
    assert axes.lines[-1].get_linestyle() == "--"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train_mse_loss", "stalled"]
    draw_metrics(lines, tmp_path)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train_mse_loss"]


def test_import_does_not_load_torch_or_matplotlib():
    code = "import sys, common.plotting.metrics; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
