import numpy as np
from matplotlib.image import imread

from common.plotting.metrics import _figure, draw_metrics
from common.training.history import History, Series


def series(values):
    found = Series()
    found.extend(np.arange(len(values)) * 50, np.asarray(values, dtype=np.float32))
    return found


def test_each_picture_shows_its_own_lines(tmp_path):
    """One figure serves for all: nothing of a picture may be left in the next one."""
    history = History()
    history.train["a"] = series(np.linspace(0, 1, 10))
    history.validation |= {"x": series(np.ones(90_000)), "y": series([5.0, 2.0])}
    draw_metrics(history, {"one": "a", "two": "x|y", "none": "z"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}
    draw_metrics(history, {"two": "x|y"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png", "a.png"}
    pixels = {name: imread(tmp_path / f"{name}.png") for name in ("one", "two", "a")}
    draw_metrics(history, {"alone": "a"}, tmp_path)
    assert pixels["one"].shape == (480, 640, 4)
    assert (pixels["one"] != pixels["two"]).any()
    label = np.s_[:, 60:]  # the label beside the axis is the picture's name
    assert (pixels["one"][label] == pixels["a"][label]).all()
    assert (pixels["one"][label] == imread(tmp_path / "alone.png")[label]).all()


def test_what_is_not_finite_is_left_out(tmp_path):
    history = History()
    history.validation |= {"a": series([1.0, np.nan, np.inf]), "b": series([np.nan])}
    draw_metrics(history, {"m": "a|b"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_many_lines_have_a_legend_of_the_first_and_the_last(tmp_path):
    history = History()
    history.validation |= {f"v{k}": series([float(k), k + 1.0]) for k in range(50)}
    draw_metrics(history, {"all": r"v\d+"}, tmp_path)
    (axes,) = _figure().axes
    assert len(axes.lines) == 50
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["validation_v0", "validation_v49"]
