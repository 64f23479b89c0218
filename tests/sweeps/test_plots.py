"""Tests of the processes that plot metrics during training."""

import os
import signal
import subprocess

import pytest

from common.sweeps import plots as plots_module
from common.sweeps.folder import new_folder
from common.sweeps.plots import MetricPlots
from tests.conftest import make_experiment, train


@pytest.fixture
def experiments(tmp_path):
    """Returns three trained experiments with folders."""
    experiments = [make_experiment(epochs=200, output_dir=tmp_path, random_seed=seed) for seed in range(3)]
    train(experiments)
    for experiment in experiments:
        experiment.folder = new_folder(experiment.parameters, {})
    return experiments


@pytest.fixture
def processes(monkeypatch):
    """Returns a list that collects the processes that are started."""
    started, popen = [], subprocess.Popen

    def recording(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(plots_module.subprocess, "Popen", recording)
    return started


def draw_all(experiments):
    """Draws the experiments' metrics. Returns the numbers of files, and how often the end of a drawing was reported."""
    plots, done = MetricPlots(len(experiments)), []
    for experiment in experiments:
        plots.draw(experiment, done.append)
    plots.close()
    assert all(seconds > 0 for seconds in done)
    return [len(list(each.folder.path.glob("plots/*.png"))) for each in experiments], len(done)


def test_all_experiments_are_plotted_if_queue_is_full(experiments, monkeypatch):
    monkeypatch.setattr(plots_module, "_MOST_WAITING", 1)
    assert draw_all(experiments) == ([9, 9, 9], 3)


def test_process_is_in_a_session_of_its_own(experiments, processes):
    """It gets no signals from the terminal."""
    plots = MetricPlots(1)
    plots.draw(experiments[0], lambda _: None)
    while not processes:
        plots.collect(0.05)
    assert os.getsid(processes[0].pid) == processes[0].pid
    plots.close()
    assert processes[0].returncode == 0


@pytest.mark.parametrize("failure", ["killed", "not started"])
def test_plots_are_drawn_here_if_no_process_draws_them(experiments, processes, monkeypatch, failure):
    if failure == "not started":
        monkeypatch.setattr(plots_module.sys, "executable", "/nonexistent")
    plots, done = MetricPlots(len(experiments)), []
    plots.draw(experiments[0], done.append)
    while failure == "killed" and not processes:
        plots.collect(0.05)
    if processes:
        os.kill(processes[0].pid, signal.SIGKILL)
    plots.draw(experiments[1], done.append)
    plots.close()
    assert [len(list(each.folder.path.glob("plots/*.png"))) for each in experiments[:2]] == [9, 9]
    assert len(done) == 2


def test_what_cannot_be_drawn_costs_a_line(experiments, capsys):
    (experiments[1].folder.path / "plots").write_text("in the way")
    numbers, done = draw_all(experiments)
    assert (numbers, done) == ([9, 0, 9], 3)
    output = capsys.readouterr().out
    assert output.startswith(f"{experiments[1].folder.path / 'plots'}: not drawn: FileExistsError")
    assert output.count("\n") == 1
