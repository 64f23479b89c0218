"""Adds a flag to a runner and checks that resuming and plotting distinguish runs by it."""

from common.cli import Parser
from common.plotting.histories import load_curve
from common.plotting.runs import read_groups, require_matrix_run
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, MATRIX, ROOT, runs_by_number

LINE = '    add("-depth", type=integer(1, 10000), default=3, help="number of factors")\n'
NOISE = '    add("-noise", type=real(0), default=0.0, help="standard deviation of noise in the gradients")\n'
CLIP = '    add("-clip", type=real(0), default=1.5, help="largest gradient")\n'


def parser_with(*added):
    """Returns the parser of a runner after adding lines to its source."""
    text = (ROOT / "dmf_experiment_runner.py").read_text()
    assert text.count(LINE) == 1
    namespace = {"__name__": "edited"}
    exec(text.replace(LINE, LINE + "".join(added)), namespace)
    parser = Parser()
    namespace["add_flags"](parser)
    return parser


def drawn_lines(directory):
    """Returns the number of runs in each line of a plot, by its name."""
    lines, skipped = read_groups(str(directory), require_matrix_run, load_curve)
    assert skipped == []
    return {line.name: len(line.values) for line in lines}


def test_added_flag_distinguishes_runs(tmp_path):
    """Also from runs that were made before the flag was added: they have its default."""
    base = {"dataset_path": MATRIX, "output_dir": tmp_path, "epochs": 1000, "random_seed": 3, "store_checkpoints": True}

    def sweep(parser, *experiments):
        run_sweep(KINDS["dmf"][0], [parser.parse(parser.words({**base, **each})) for each in experiments], resume=True)
        runs = [parameters for found in runs_by_number(tmp_path).values() for parameters, _ in found]
        return sorted((each["noise"], each.get("clip", 1.5), each["random_seed"]) for each in runs)

    parser, later = parser_with(NOISE), parser_with(NOISE, CLIP)
    sweep(parser, {"noise": 0.5})
    # A finished run, a run with another seed, and a run that differs only in the added flag.
    found = sweep(parser, {"noise": 0.5}, {"noise": 0.5, "random_seed": 4}, {"noise": 0.25})
    assert found == [(0.25, 1.5, 3), (0.5, 1.5, 3), (0.5, 1.5, 4)]
    assert drawn_lines(tmp_path) == {"noise 0.5": 2, "noise 0.25": 1}

    assert sweep(later, {"noise": 0.5}, {"noise": 0.25, "clip": 1.5}) == found
    assert len(sweep(later, {"noise": 0.5, "clip": 2, "random_seed": 4})) == 4
    names = {"clip 1.5, noise 0.5": 2, "clip 1.5, noise 0.25": 1, "clip 2.0, noise 0.5": 1}
    assert drawn_lines(tmp_path) == names
