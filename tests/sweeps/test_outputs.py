"""Tests of the processes that plot metrics during training."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from common.signals import Stop
from common.sweeps import outputs
from common.sweeps.folder import new_folder
from common.sweeps.outputs import MetricPlots, SweepContext
from common.sweeps.processes import World
from tests.conftest import make_experiment, train


@pytest.fixture
def context():
    return SweepContext(3, {}, World("launch"), Stop(), np.inf)


@pytest.fixture
def experiments(tmp_path):
    """Returns three trained experiments with folders."""
    experiments = [make_experiment(epochs=200, output_dir=tmp_path, random_seed=seed) for seed in range(3)]
    train(experiments)
    for experiment in experiments:
        experiment.folder = new_folder(experiment.parameters, {}, ".making", str(experiment.parameters["random_seed"]))
    return experiments


def close(plots, context):
    """Waits until everything is plotted and on the disk."""
    plots.close()
    context.disk.sync_all()


def plot_files(experiment):
    return sorted(path.name for path in experiment.folder.path.glob("plots/*.png"))


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_experiments_are_plotted_if_queue_is_full(context, experiments, monkeypatch):
    monkeypatch.setattr(outputs, "_MOST_WAITING", 1)
    plots, done = MetricPlots(context, len(experiments)), []
    for experiment in experiments:
        plots.draw(experiment, lambda experiment=experiment: done.append(experiment.number))
    close(plots, context)
    assert len(done) == 3
    assert [len(plot_files(experiment)) for experiment in experiments] == [9, 9, 9]
    assert context.failures == []


def test_killed_plot_process_loses_only_its_plots(context, experiments):
    plots = MetricPlots(context, len(experiments))
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, signal.SIGSTOP)
    plots.draw(experiments[0])
    process.kill()
    wait_for(lambda: plots.collect(0.1) or context.failures)
    assert [each.failed for each in experiments] == [True, False, False]
    plots.draw(experiments[1])
    close(plots, context)
    assert len(plot_files(experiments[1])) == 9
    assert len(context.failures) == 1
    assert "BrokenProcessPool" in context.failures[0]


def test_plot_process_ignores_signals(context, experiments):
    plots = MetricPlots(context, len(experiments))
    (process,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    plots.draw(experiments[0])
    close(plots, context)
    assert len(plot_files(experiments[0])) == 9
    assert context.failures == []


def test_close_does_not_wait_after_signal(context, experiments):
    plots = MetricPlots(context, len(experiments))
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, signal.SIGSTOP)
    done = []
    plots.draw(experiments[0], lambda: done.append(0))
    context.stop.number = signal.SIGTERM
    plots.close()
    wait_for(lambda: not process.is_alive())
    assert done == []
    assert not experiments[0].failed
