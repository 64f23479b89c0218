"""Helpers and fixtures shared by the tests."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from hypothesis import settings

from common import cli
from common.cli import Parser
from common.problems.matrix_factorization import MatrixFactorization
from common.problems.tensor_completion import TensorFactorization
from common.sweeps import progress, sweep
from common.sweeps.experiment import identify, prepare, resolve
from common.sweeps.plots import MetricPlots
from common.sweeps.training import build_engine, build_trainer
from common.training import native_engine, torch_engine
from common.training.native_engine import native_kernel
from dmf_experiment_runner import add_flags as add_dmf_flags
from tc_experiment_runner import add_flags as add_tc_flags

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "data/dmf/completion_2x2_w_1_1_0.pt"
TENSOR = ROOT / "data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt"
KINDS = {"dmf": (MatrixFactorization, add_dmf_flags, MATRIX), "tc": (TensorFactorization, add_tc_flags, TENSOR)}

settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("project")


def parse_parameters(kind="dmf", **given):
    """Returns the parameters of an experiment; flags that are not given have their defaults."""
    parser = Parser()
    KINDS[kind][1](parser)
    dataset = {} if given.get("random_target") else {"dataset_path": KINDS[kind][2]}
    return parser.parse(parser.words({**dataset, "random_seed": 0, **given}))


def make_experiment(kind="dmf", **given):
    """Returns an experiment that is ready for training and keeps its history."""
    parameters = parse_parameters(kind, **given)
    values = resolve(KINDS[kind][0], parameters)
    experiment = prepare(KINDS[kind][0], values, identify(parameters, values, Counter()), 1)
    experiment.keeps_history = True
    return experiment


def make_trainer(experiments, native=False):
    """Returns a trainer of experiments that can be trained in one batch."""
    problem, factors, kernel = experiments[0].problem, experiments[0].factors, None
    if native:
        shapes = [factor.shape for factor in factors]
        num_observed, _ = problem.num_observations
        optimizer = problem.optimizer, num_observed, problem.decays
        kernel = native_kernel(problem.model, shapes, factors[0].dtype, *optimizer)
    engine = build_engine(experiments, torch.device("cpu"), kernel)
    return build_trainer(experiments, engine)


def train(experiments, native=False):
    """Trains a batch of experiments until all have stopped; returns the list of factors of each experiment."""
    trainer = make_trainer(experiments, native)
    factors = {}
    while trainer.running:
        for ended in trainer.advance():
            factors[ended.state] = list(ended.engine.model.experiment_state(ended.index).values())
    return [factors[experiment] for experiment in experiments]


def make_generator(seed):
    """Returns a generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def measure(problem, losses, outputs):
    """Returns train and validation metrics (n,) by name, of losses (n,) and matrices or tensors (n, rows, cols)."""
    (train, validation), values = problem.measure([problem], losses[None], outputs[None])
    named = dict(zip(train + validation, values[:, 0], strict=True))
    return {name: named[name] for name in train}, {name: named[name] for name in validation}


def recorded_metrics(experiment):
    """Returns the recorded train and validation metrics of an experiment, by name."""
    return experiment.history.train | experiment.history.validation


def folders_in(directory):
    """Returns the sorted folders in a folder: of an output folder, those of its experiments."""
    return sorted(path for path in directory.iterdir() if path.is_dir())


def runs_by_number(output_dir):
    """Returns the (run parameters, folder) pairs of each experiment, by number in the sweep."""
    found = {}
    for folder in folders_in(output_dir):
        if not (folder / "run_params.json").exists():
            continue
        parameters = json.loads((folder / "run_params.json").read_text())
        found.setdefault(parameters["provenance"]["sweep"]["experiment"], []).append((parameters, folder))
    return found


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory):
    """Sets the kernel cache to a temporary folder, which the processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")


@pytest.fixture(scope="session", autouse=True)
def default_signal_handlers():
    """Restores the default handlers, which child processes inherit: background jobs may ignore SIGINT, nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Uses one thread of PyTorch, because small products take longer on several. Sweeps leave it with all."""
    torch.set_num_threads(1)


@pytest.fixture
def frequent_outputs(monkeypatch):
    """Lets a sweep write in mid-run at every validation at which that is due."""
    monkeypatch.setattr(progress, "PAUSE_TIMES", 0)
    monkeypatch.setattr(progress, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(native_engine, "_MAX_MULTIPLICATIONS_PER_CHUNK", 0)
    monkeypatch.setattr(torch_engine, "_MAX_SECONDS_OF_CHUNK", 0)


@pytest.fixture
def run_script(tmp_path):
    """Returns a function that runs a script as a subprocess, in an empty folder and without a display."""

    def run(script, *arguments, cwd=tmp_path):
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "", "COLUMNS": "100"}
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Returns a function that runs the main function of a script in this process, in an empty folder."""
    matplotlib.use("agg")

    def run(script, *arguments):
        namespace = {"__name__": "script", "__file__": str(ROOT / script)}
        exec(compile((ROOT / script).read_text(), script, "exec"), namespace)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [*map(str, (script, *arguments))])
        capsys.readouterr()
        cli.warn_once.cache_clear()
        torch.set_num_threads(1)
        status = 0
        try:
            cli.run_script(namespace["main"])
        except SystemExit as ended:
            status = ended.code
        stdout, stderr = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=stdout, stderr=stderr)

    return run


@pytest.fixture
def no_plots_of_runs(monkeypatch):
    """Lets sweeps run without plots of single runs, which take most of the time of small sweeps."""
    monkeypatch.setattr(sweep, "MetricPlots", lambda number: MetricPlots(0))
    monkeypatch.setattr(MetricPlots, "draw", lambda self, experiment, then: then(0.0))


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def native(request):
    """Whether to use the native engine."""
    return request.param


@pytest.fixture
def dataset():
    """Returns the path of the 2x2 dataset from the paper."""
    return MATRIX
