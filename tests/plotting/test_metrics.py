import numpy as np
from matplotlib.image import imread

from common.plotting.metrics import draw_metrics
from common.training.history import Series


def series(values):
    found = Series()
    found.extend(np.arange(len(values)) * 50, np.asarray(values, dtype=np.float32))
    return found


def test_each_picture_shows_its_own_lines(tmp_path):
    """One figure serves for all: nothing of a picture may be left in the next one."""
    one, two = {"train_a": series(np.linspace(0, 1, 10))}, {"x": series(np.ones(90_000)), "y": series([5.0, 2.0])}
    draw_metrics({"one": one, "two": two, "again": one}, tmp_path)
    pixels = {name: imread(tmp_path / f"{name}.png") for name in ("one", "two", "again")}
    draw_metrics({"alone": one}, tmp_path)
    assert pixels["one"].shape == (480, 640, 4)
    assert (pixels["one"] != pixels["two"]).any()
    label = np.s_[:, 60:]  # the label beside the axis is the picture's name
    assert (pixels["one"][label] == pixels["again"][label]).all()
    assert (pixels["one"][label] == imread(tmp_path / "alone.png")[label]).all()


def test_what_is_not_finite_is_left_out(tmp_path):
    draw_metrics({"m": {"a": series([1.0, np.nan, np.inf]), "b": series([np.nan])}}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]
