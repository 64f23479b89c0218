import re
import signal
import time

import numpy as np
from matplotlib.image import imread

from common.plotting.metrics import _figure, draw
from common.plotting.pictures import PictureProcesses, metric_lines
from common.training.history import History


def series(values):
    history = History()
    history.extend(np.arange(len(values)) * 50, {"a": np.asarray(values, dtype=np.float32)}, {})
    return history.train["a"]


def test_each_picture_shows_its_own_lines(tmp_path):
    """One figure serves for all: nothing of a picture may be left in the next one."""
    history = History()
    history.train["a"] = series(np.linspace(0, 1, 10))
    history.validation |= {"x": series(np.ones(90_000)), "y": series([5.0, 2.0])}
    draw(metric_lines(history, {"one": "a", "two": "x|y", "none": "z"}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}
    draw(metric_lines(history, {"two": "x|y"}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png", "a.png"}
    pixels = {name: imread(tmp_path / f"{name}.png") for name in ("one", "two", "a")}
    draw(metric_lines(history, {"alone": "a"}), tmp_path)
    assert pixels["one"].shape == (480, 640, 3)
    assert (pixels["one"] != pixels["two"]).any()
    label = np.s_[:, 60:]  # the label beside the axis is the picture's name
    assert (pixels["one"][label] == pixels["a"][label]).all()
    assert (pixels["one"][label] == imread(tmp_path / "alone.png")[label]).all()


def test_what_is_not_finite_is_left_out(tmp_path):
    history = History()
    history.validation |= {"a": series([1.0, np.nan, np.inf]), "b": series([np.nan])}
    draw(metric_lines(history, {"m": "a|b"}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_many_lines_have_a_legend_of_the_first_and_the_last(tmp_path):
    history = History()
    history.validation |= {f"v{k}": series([float(k), k + 1.0]) for k in range(50)}
    draw(metric_lines(history, {"all": r"v\d+"}), tmp_path)
    (axes,) = _figure().axes
    assert len(axes.lines) == 50
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["validation_v0", "validation_v49"]


def lines_of(values):
    history = History()
    history.train["loss"] = series(values)
    return metric_lines(history, {})


def test_the_process_draws_what_it_is_sent_and_says_how_long_it_took(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    pictures = PictureProcesses()
    pictures.draw(lines_of([3.0, 2.0]), tmp_path / "first")
    pictures.draw(lines_of([3.0, 1.0]), tmp_path / "second")
    assert pictures.pending > 0
    costs, deadline = [], time.monotonic() + 60
    while pictures.pending and time.monotonic() < deadline:
        costs += pictures.seconds()
    assert len(costs) == 2
    assert all(cost > 0 for cost in costs)
    pictures.close()
    assert (imread(tmp_path / "first/loss.png") != imread(tmp_path / "second/loss.png")).any()


def test_a_picture_that_cannot_be_drawn_is_an_error_of_its_own(tmp_path):
    pictures, told = PictureProcesses(), []
    pictures.draw(lines_of([1.0]), tmp_path / "missing", told.append)
    pictures.draw(lines_of([1.0]), tmp_path, told.append)
    pictures.close()
    error, fine = told
    assert isinstance(error, OSError)
    assert re.search(r"drawing failed: .*No such file.*missing", str(error))
    assert fine is None


def test_a_process_that_ends_has_drawn_nothing(tmp_path):
    pictures, told = PictureProcesses(), []
    pictures._processes[0].kill()
    pictures.draw(lines_of([1.0]), tmp_path, told.append)
    pictures.close()
    assert [type(error) for error in told] == [OSError]


def test_what_is_not_wanted_any_more_is_not_waited_for(tmp_path):
    pictures, told = PictureProcesses(), []
    pictures.draw(lines_of([1.0]), tmp_path, told.append)
    pictures.close(give_up=lambda: True)
    assert told == []
    assert list(tmp_path.iterdir()) == []


def test_signals_are_left_to_the_process_that_trains(tmp_path):
    pictures = PictureProcesses()
    for number in (signal.SIGINT, signal.SIGTERM):
        pictures._processes[0].send_signal(number)
    pictures.draw(lines_of([1.0, 2.0]), tmp_path)
    pictures.close()
    assert (tmp_path / "loss.png").exists()


def test_a_picture_that_makes_no_sense_is_an_error_of_its_own(tmp_path):
    pictures, told = PictureProcesses(), []
    pictures.draw({"x": {"a": "no pair"}}, tmp_path, told.append)
    pictures.draw(lines_of([1.0]), tmp_path, told.append)
    pictures.close()
    assert [type(error) for error in told] == [OSError, type(None)]


def test_more_may_be_asked_for_than_a_pipe_holds(tmp_path):
    """Nobody listens in between."""
    pictures, told = PictureProcesses(), []
    for _ in range(10_000):
        pictures.draw({}, tmp_path, told.append)
    pictures.close()
    assert told == [None] * 10_000
