"""Helpers that many tests share."""

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
from common.sweeps.batch import build_engine
from common.sweeps.experiment import identify, prepare, resolve
from common.training.native_engine import native_kernel
from common.training.trainer import Trainer
from dmf_experiment_runner import add_flags as add_dmf_flags
from tc_experiment_runner import add_flags as add_tc_flags

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "data/dmf/completion_2x2_w_1_1_0.pt"
TENSOR = ROOT / "data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt"
KINDS = {"dmf": (MatrixFactorization, add_dmf_flags, MATRIX), "tc": (TensorFactorization, add_tc_flags, TENSOR)}

settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("project")


def parsed(kind="dmf", **given):
    """Parameters of an experiment, with the flags' defaults where `given` says nothing."""
    parser = Parser()
    KINDS[kind][1](parser)
    return parser.parse(parser.words({"dataset_path": KINDS[kind][2], "random_seed": 0, **given}))


def prepared(kind="dmf", **given):
    """An experiment, ready to be trained."""
    parameters = parsed(kind, **given)
    values = resolve(KINDS[kind][0], parameters)
    experiment = prepare(KINDS[kind][0], values, identify(parameters, values, Counter()), 1)
    experiment.state.keeps_history = True
    return experiment


def trainer_of(experiments, native=False):
    """A trainer of experiments that can be in one batch."""
    problem, factors, kernel = experiments[0].problem, experiments[0].factors, None
    if native:
        shapes = [factor.shape for factor in factors]
        kernel = native_kernel(problem.model, shapes, factors[0].dtype, problem.optimizer, problem.multiplications)
    engine = build_engine(experiments, torch.device("cpu"), kernel)
    states, every = [experiment.state for experiment in experiments], experiments[0].parameters["validate_every"]
    return Trainer(engine, states, every, problem.max_zero_loss_validations)


def train(experiments, native=False):
    """Trains experiments side by side, all to their end. Their factors, a list for each experiment."""
    trainer = trainer_of(experiments, native)
    factors = {}
    while trainer.running:
        for ended in trainer.advance():
            factors[ended.state] = list(ended.engine.model.experiment_state(ended.index).values())
    return [factors[experiment.state] for experiment in experiments]


def metrics_of(experiment):
    """The recorded metrics of an experiment, train and validation, by name."""
    return experiment.state.history.train | experiment.state.history.validation


def runs_in(output_dir):
    """run_params.json and folder of each experiment, by its number in its sweep."""
    found = {}
    for folder in output_dir.glob("[!.]*"):
        parameters = json.loads((folder / "run_params.json").read_text())
        found.setdefault(parameters["provenance"]["sweep"]["experiment"], []).append((parameters, folder))
    return found


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Kernels are compiled into a folder of the tests' own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """What is started here heeds SIGINT, also if this was started to ignore it, in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_script(tmp_path):
    """Runs a script of the project as a user does, in an empty folder and without a screen."""

    def run(script, *arguments, cwd=tmp_path):
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "", "COLUMNS": "100"}
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Runs a script's main function in this process, as a user runs it in an empty folder and without a screen."""
    matplotlib.use("agg")

    def run(script, *arguments):
        namespace = {"__name__": "script", "__file__": str(ROOT / script)}
        exec(compile((ROOT / script).read_text(), script, "exec"), namespace)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            cli.run_script(namespace["main"])
        except SystemExit as ended:
            status = ended.code
        stdout, stderr = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=stdout, stderr=stderr)

    return run


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def native(request):
    """Whether the native engine takes the steps."""
    return request.param


@pytest.fixture
def dataset():
    """The path of the paper's dataset."""
    return MATRIX
