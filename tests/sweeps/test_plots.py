"""Tests of the processes that plot metrics during training."""

import os
import signal
import subprocess

import numpy as np
import pytest

from common.plotting.metrics import draw_metrics
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


def num_plots(experiments):
    return [len(list(each.folder.path.glob("plots/*.png"))) for each in experiments]


def test_what_cannot_be_drawn_costs_a_line(experiments, monkeypatch, capsys):
    monkeypatch.setattr(plots_module, "_MOST_WAITING", 1)  # the next one waits
    (experiments[1].folder.path / "plots").write_text("in the way")
    plots, seconds = MetricPlots(3), []
    for experiment in experiments:
        plots.draw(experiment, seconds.append)
    plots.close()
    assert num_plots(experiments) == [9, 0, 9]
    assert len(seconds) == 3
    assert min(seconds) > 0
    output = capsys.readouterr().out
    assert output.startswith(f"{experiments[1].folder.path / 'plots'}: not drawn: FileExistsError")
    assert output.count("\n") == 1


def test_plots_are_drawn_here_if_the_process_that_draws_them_is_killed(experiments, monkeypatch):
    processes, popen = [], subprocess.Popen

    def recording(*arguments, **options):
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(plots_module.subprocess, "Popen", recording)
    plots = MetricPlots(3)
    plots.draw(experiments[0], lambda _: None)
    while not processes:
        plots.collect(0.05)
    assert os.getsid(processes[0].pid) == processes[0].pid  # it gets no signals from the terminal
    os.kill(processes[0].pid, signal.SIGKILL)
    plots.draw(experiments[1], lambda _: None)
    plots.close()
    assert num_plots(experiments[:2]) == [9, 9]


def test_later_plots_of_a_run_stay(experiments):
    """A drawing of an earlier state, in another process, must not end after the last one."""
    plots, drawn = MetricPlots(3), []
    plots.draw(experiments[0], lambda _: drawn.append("earlier"))
    plots.draw(experiments[0], lambda _: drawn.append("last"))
    assert drawn == ["earlier"]
    plots.close()
    assert drawn == ["earlier", "last"]


def test_nothing_is_drawn_for_a_dead_process(tmp_path):
    """Its run may have been resumed."""
    lines = {"loss": {"loss": (np.arange(3), np.ones(3))}}
    draw_metrics(lines, tmp_path, owner=2**22 + 1)
    assert not any(tmp_path.iterdir())
    for owner in (os.getpid(), os.getppid()):
        draw_metrics(lines, tmp_path, owner=owner)
        (tmp_path / "loss.png").unlink()
