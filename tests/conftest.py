"""Helpers that many tests share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from common.cli import check_parameters
from common.experiments import dmf, tc
from common.training.lockstep import LockstepTrainer
from dmf_experiment_runner import FLAGS
from tc_experiment_runner import FLAGS as TC_FLAGS

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("project")


def prepared(**parameters):
    """A dmf experiment, with the flags' defaults where `parameters` says nothing."""
    parameters = {"dataset_path": str(ROOT / "data/dmf/completion_2x2_w_1_1_0.pt"), "random_seed": 0, **parameters}
    return dmf.prepare(check_parameters(FLAGS, parameters))


def prepared_tc(**parameters):
    """A tc experiment, with the flags' defaults where `parameters` says nothing."""
    path = ROOT / "data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt"
    parameters = {"dataset_path": str(path), "random_seed": 0, **parameters}
    return tc.prepare(check_parameters(TC_FLAGS, parameters))


def trainer_of(experiments, problem=dmf, native=False):
    """A trainer of experiments with equal batch keys."""
    kernel = problem.native_kernel(experiments[0]) if native else None
    engine = problem.stack(experiments, torch.device("cpu"), kernel)
    validate_every = experiments[0].parameters["validate_every"]
    return LockstepTrainer(engine, experiments, validate_every, problem.MAX_ZERO_LOSS_VALIDATIONS)


def train(experiments, problem=dmf, native=False):
    """Trains experiments side by side, all to their end. Their factors, a list for each experiment."""
    trainer = trainer_of(experiments, problem, native)
    factors = {}
    while trainer.running:
        for ended in trainer.advance():
            factors[id(ended.run)] = list(ended.engine.model.experiment_state(ended.position).values())
        trainer.drop_ended()
    return [factors[id(experiment)] for experiment in experiments]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Kernels are compiled into a folder of the tests' own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """What is started here heeds SIGINT, also where this was started to ignore it, in the background of a script."""
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


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def native(request):
    """Whether the native engine takes the steps."""
    return request.param


@pytest.fixture
def dataset(tmp_path):
    """The path of the paper's dataset."""
    return ROOT / "data/dmf/completion_2x2_w_1_1_0.pt"
