"""Adds a flag to a runner and checks that resuming and plotting distinguish runs by it."""

import pytest

from common.cli import Parser
from common.plotting.curves import Wanted, read_lines
from common.plotting.tensor_completion import read_results, summarize
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, ROOT, runs_by_number

NAMES = {"dmf": "dmf_experiment_runner.py", "tc": "tc_experiment_runner.py"}
LINE = {
    "dmf": '    add("-depth", type=integer(1, 10000), default=3, help="number of factors")\n',
    "tc": '    add("-tensor_rank_tol", type=real(0, above=True), default=1e-6, help=text)\n',
}
ADDED_LINE = '    add("-noise", type=real(0), default=0.0, help="standard deviation of noise in the gradients")\n'
SHORT = {"epochs": 1000, "random_seed": 3, "store_checkpoints": True}


def parser_with_added_flag(kind, *more):
    """Returns the parser of a runner after adding `ADDED_LINE` and the lines in `more` to its source."""
    text, line = (ROOT / NAMES[kind]).read_text(), LINE[kind]
    assert text.count(line) == 1
    namespace = {"__name__": "edited"}
    exec(text.replace(line, line + ADDED_LINE + "".join(more)), namespace)
    parser = Parser()
    namespace["add_flags"](parser)
    return parser


def parameter_list(kind, directory, *experiments, parser=None):
    parser = parser or parser_with_added_flag(kind)
    base = {"dataset_path": KINDS[kind][2], "output_dir": directory, **SHORT}
    return [parser.parse(parser.words({**base, **each})) for each in experiments]


@pytest.mark.parametrize("kind", KINDS)
def test_added_flag_distinguishes_runs(kind, tmp_path):
    problem = KINDS[kind][0]
    run_sweep(problem, parameter_list(kind, tmp_path, {"noise": 0.5}))
    # A finished run, a run with another seed, and a run that differs only in the added flag.
    wanted = [{"noise": 0.5}, {"noise": 0.5, "random_seed": 4}, {"noise": 0.25}]
    run_sweep(problem, parameter_list(kind, tmp_path, *wanted), resume=True)
    runs = [parameters for found in runs_by_number(tmp_path).values() for parameters, _ in found]
    assert sorted((each["noise"], each["random_seed"]) for each in runs) == [(0.25, 3), (0.5, 3), (0.5, 4)]

    if kind == "dmf":
        lines, skipped = read_lines(str(tmp_path), Wanted())
        assert {line.name: len(line.curves) for line in lines} == {"noise 0.5": 2, "noise 0.25": 1}
    else:
        results, skipped = read_results(str(tmp_path))
        rows = {row["method"]: row["repetitions"] for row in summarize(results)}
        assert rows == {"linear": 1, "tf, factor init 1e-3, noise 0.5": 2, "tf, factor init 1e-3, noise 0.25": 1}
    assert skipped == []


@pytest.mark.parametrize("kind", KINDS)
def test_runs_without_added_flag_have_its_default(kind, tmp_path):
    run_sweep(KINDS[kind][0], parameter_list(kind, tmp_path, {"noise": 0.5}))
    later = parser_with_added_flag(
        kind, '    add("-clip", type=real(0), default=1.5, help="largest norm of a gradient")\n'
    )
    run_sweep(
        KINDS[kind][0], parameter_list(kind, tmp_path, {"noise": 0.5}, {"noise": 0.5, "clip": 2}, parser=later), True
    )
    runs = [parameters for found in runs_by_number(tmp_path).values() for parameters, _ in found]
    assert sorted(each.get("clip", 0) for each in runs) == [0, 2]
    # Plotters treat a run without the flag as a run with its default.
    run_sweep(KINDS[kind][0], parameter_list(kind, tmp_path, {"noise": 0.5, "random_seed": 4}, parser=later))
    if kind == "dmf":
        lines, _ = read_lines(str(tmp_path), Wanted())
        assert {line.name: len(line.curves) for line in lines} == {"clip 1.5": 2, "clip 2.0": 1}
    else:
        rows = {row["method"]: row["repetitions"] for row in summarize(read_results(str(tmp_path))[0])}
        assert rows == {"linear": 1, "tf, factor init 1e-3, clip 1.5": 2, "tf, factor init 1e-3, clip 2.0": 1}
