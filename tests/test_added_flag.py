"""A flag that a researcher adds to a runner, with one line: runs that differ in it are different everywhere."""

import pytest

from common.cli import Parser
from common.plotting.curves import Wanted, read_lines
from common.plotting.tensor_completion import read_results, summarize
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, ROOT, runs_in

NAMES = {"dmf": "dmf_experiment_runner.py", "tc": "tc_experiment_runner.py"}
LINE = {
    "dmf": '    add("-depth", type=integer(1, 10000), default=3, help="number of factors")\n',
    "tc": '    add("-init_std", type=real(0), default=1e-3, help="standard deviation of the initial factors")\n',
}
ADDED = '    add("-noise", type=real(0), default=0.0, help="standard deviation of noise in the gradients")\n'
SHORT = {"epochs": 1000, "random_seed": 3, "store_checkpoints": True}


def runner(kind, *more):
    """The flags of a runner to which ADDED, and lines of `more`, were added."""
    text, line = (ROOT / NAMES[kind]).read_text(), LINE[kind]
    assert text.count(line) == 1
    namespace = {"__name__": "edited"}
    exec(text.replace(line, line + ADDED + "".join(more)), namespace)
    parser = Parser()
    namespace["add_flags"](parser)
    return parser


def listed(kind, directory, *experiments, parser=None):
    parser = parser or runner(kind)
    base = {"dataset_path": KINDS[kind][2], "output_dir": directory, **SHORT}
    return [parser.parse(parser.words({**base, **each})) for each in experiments]


@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_differ_in_it_are_resumed_grouped_and_labelled_apart(kind, tmp_path):
    problem = KINDS[kind][0]
    run_sweep(problem, listed(kind, tmp_path, {"noise": 0.5}))
    # One that is finished, one with another seed, and one that differs in the new flag alone.
    wanted = [{"noise": 0.5}, {"noise": 0.5, "random_seed": 4}, {"noise": 0.25}]
    run_sweep(problem, listed(kind, tmp_path, *wanted), resume=True)
    runs = [parameters for found in runs_in(tmp_path).values() for parameters, _ in found]
    assert sorted((each["noise"], each["random_seed"]) for each in runs) == [(0.25, 3), (0.5, 3), (0.5, 4)]

    if kind == "dmf":
        lines, skipped = read_lines(str(tmp_path), Wanted())
        assert {line.name: len(line.curves) for line in lines} == {"noise 0.5": 2, "noise 0.25": 1}
    else:
        results, skipped = read_results(str(tmp_path))
        rows = {row["method"]: row["repetitions"] for row in summarize(results)}
        assert rows == {"linear": 3, "tf, init 1e-3, noise 0.5": 2, "tf, init 1e-3, noise 0.25": 1}
    assert skipped == []


@pytest.mark.parametrize("kind", KINDS)
def test_runs_from_before_it_existed_had_its_default(kind, tmp_path):
    run_sweep(KINDS[kind][0], listed(kind, tmp_path, {"noise": 0.5}))
    later = runner(kind, '    add("-clip", type=real(0), default=1.5, help="largest norm of a gradient")\n')
    run_sweep(KINDS[kind][0], listed(kind, tmp_path, {"noise": 0.5}, {"noise": 0.5, "clip": 2}, parser=later), True)
    runs = [parameters for found in runs_in(tmp_path).values() for parameters, _ in found]
    assert sorted(each.get("clip", 0) for each in runs) == [0, 2]
