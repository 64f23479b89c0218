"""Adds a flag to a runner and checks that resuming and plotting distinguish runs by it."""

import pytest

from common.cli import Parser
from common.plotting.histories import load_curve
from common.plotting.runs import read_groups, require_matrix_run
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


def drawn_lines(kind, directory):
    """Returns the number of runs in each line of a plot, by its name."""
    if kind == "dmf":
        lines, skipped = read_groups(str(directory), require_matrix_run, load_curve)
        found = {line.name: len(line.values) for line in lines}
    else:
        results, skipped = read_results(str(directory))
        found = {row["method"]: row["repetitions"] for row in summarize(results)}
        assert found.pop("linear") == 1
    assert skipped == []
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_added_flag_distinguishes_runs(kind, tmp_path):
    """Also from runs that were made before the flag was added: they have its default."""

    def sweep(parser, *experiments):
        base = {"dataset_path": KINDS[kind][2], "output_dir": tmp_path, **SHORT}
        run_sweep(KINDS[kind][0], [parser.parse(parser.words({**base, **each})) for each in experiments], resume=True)
        runs = [parameters for found in runs_by_number(tmp_path).values() for parameters, _ in found]
        return sorted((each["noise"], each.get("clip", 1.5), each["random_seed"]) for each in runs)

    parser, prefix = parser_with_added_flag(kind), "" if kind == "dmf" else "tf, init 1e-3, "
    sweep(parser, {"noise": 0.5})
    # A finished run, a run with another seed, and a run that differs only in the added flag.
    found = sweep(parser, {"noise": 0.5}, {"noise": 0.5, "random_seed": 4}, {"noise": 0.25})
    assert found == [(0.25, 1.5, 3), (0.5, 1.5, 3), (0.5, 1.5, 4)]
    assert drawn_lines(kind, tmp_path) == {f"{prefix}noise 0.5": 2, f"{prefix}noise 0.25": 1}

    later = parser_with_added_flag(kind, '    add("-clip", type=real(0), default=1.5, help="largest gradient")\n')
    assert sweep(later, {"noise": 0.5}, {"noise": 0.25, "clip": 1.5}) == found
    assert len(sweep(later, {"noise": 0.5, "clip": 2, "random_seed": 4})) == 4
    names = {"clip 1.5, noise 0.5": 2, "clip 1.5, noise 0.25": 1, "clip 2.0, noise 0.5": 1}
    assert drawn_lines(kind, tmp_path) == {f"{prefix}{name}": number for name, number in names.items()}
