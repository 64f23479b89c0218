"""Applies the recipes of common/README.md to a copy of the project, and runs them."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.pages import blocks

PLAN, FLAG, OPTIMIZER, METRIC, MEASURE, RANK = blocks(ROOT / "common/README.md", "python")[:6]


@pytest.fixture
def project(tmp_path):
    """Returns a copy of the project that is to be edited."""
    ignored = shutil.ignore_patterns(".*", "outputs", "tests", "example_plots", "__pycache__")
    return shutil.copytree(ROOT, tmp_path / "project", ignore=ignored)


def insert(path, line, text):
    """Inserts text after a line that occurs once."""
    content = path.read_text(encoding="utf-8")
    assert content.count(line) == 1, line
    path.write_text(content.replace(line, line + text), encoding="utf-8")


def run(project, *commands):
    """Runs scripts of the project in one process; returns what they print."""
    code = f"import runpy, sys\nfor sys.argv in {[command.split() for command in commands]}:"
    code += " runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def final_metrics(project, name):
    (path,) = project.glob(f"{name}/*/final_metrics_values.json")
    return json.loads(path.read_text())


def test_plan_and_rank(project):
    insert(project / "dmf_multiple_experiments_runner.py", "PLANS = {\n", PLAN)
    (project / "rank.py").write_text(RANK)
    plan = "dmf_multiple_experiments_runner.py -plan deeper -epochs 500 -repetitions 1"
    output = run(project, plan, "rank.py")
    assert output.startswith("plan deeper: the smaller init at depths 3 to 6\n4 experiments\n")
    assert output.endswith("\n[2] 2\n")


def test_flag_and_optimizer(project):
    insert(project / "dmf_experiment_runner.py", "    add = parser.add_argument\n", FLAG)
    path = project / "common/training/optimizers.py"
    path.write_text(path.read_text().replace("class Momentum(Optimizer)", f"{OPTIMIZER}\n\nclass Momentum(Optimizer)"))
    path = project / "common/flags.py"
    path.write_text(path.read_text().replace("OPTIMIZERS = {", 'OPTIMIZERS = {"noisy": "NoisyDescent", '))
    command = "dmf_experiment_runner.py -random_seed 1 -epochs 300 -save_results"
    noisy = [f"{command} -optimizer noisy -noise {noise} -output_dir noise_{noise}" for noise in (0, 10)]
    run(project, *noisy, f"{command} -engine torch -output_dir plain")
    still, moved, plain = (final_metrics(project, name) for name in ("noise_0", "noise_10", "plain"))
    assert still == plain
    assert moved["sse_loss_div_2"] != plain["sse_loss_div_2"]


def test_metric(project):
    insert(project / "common/metrics/matrix.py", "from torch import Tensor\n", f"\n\n{METRIC}")
    insert(project / "common/problems/matrix_factorization.py", "        added = {}\n", MEASURE)
    command = "dmf_experiment_runner.py -random_seed 1 -epochs 300 -save_results -store_checkpoints"
    plot = "dmf_results_plotter.py -experiments_dir out -y stable_rank -save_plot_to x.png"
    run(project, f"{command} -track_singular_values -output_dir out", plot)
    metrics = final_metrics(project, "out")
    expected = 1 + (metrics["singular_value_1"] / metrics["singular_value_0"]) ** 2
    assert metrics["stable_rank"] == pytest.approx(expected, rel=1e-5)
