"""Adds a flag to a runner and checks that resuming and plotting distinguish runs by it."""

import pytest
import torch

from common.cli import Parser
from common.flags import OPTIMIZERS
from common.plotting.histories import load_curve
from common.plotting.runs import read_groups, require_matrix_run
from common.plotting.tensor_completion import read_results, summarize
from common.sweeps.sweep import run_sweep
from common.training import optimizers
from tests.conftest import KINDS, ROOT, parse_parameters, runs_by_number
from tests.stress.kills import differences

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

    parser, prefix = parser_with_added_flag(kind), "" if kind == "dmf" else "tf, factor init 1e-3, "
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


class AveragedSigns(optimizers.Optimizer):
    """θ ← θ − lr m s / t in step t, with the moving average m of the signs of gradients and the sum s of norms."""

    factor_state = ("average_sign",)
    scalar_state = ("sum_of_norms",)

    def update(self, model):
        squares = sum(gradient.square().sum((1, 2)) for gradient in model.factor_gradients)
        sums = self.state["sum_of_norms"].add_(squares.sqrt())
        model.gradients.copy_(self.state["average_sign"].mul_(0.9).add_(model.gradients.sign_().mul_(0.1)))
        for gradient in model.factor_gradients:
            gradient.mul_((sums * self.rates["lr"] / self.num_steps)[:, None, None])
        model.values.sub_(model.gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_added_optimizer_with_state(kind, tmp_path, monkeypatch):
    """A class and an entry: its state stays with its experiment, and in checkpoints."""
    monkeypatch.setattr(optimizers, "AveragedSigns", AveragedSigns, raising=False)
    monkeypatch.setitem(OPTIMIZERS, "averaged_signs", "AveragedSigns")

    def run(name, *epochs, **more):
        directory = tmp_path / name
        common = {"optimizer": "averaged_signs", "store_checkpoints": True, "output_dir": directory}
        experiments = [{**common, "epochs": each, "random_seed": each, **more} for each in epochs]
        run_sweep(KINDS[kind][0], [parse_parameters(kind, **each) for each in experiments])
        found = runs_by_number(directory)
        paths = [next((found[n + 1][0][1] / "checkpoints").iterdir()) for n in range(len(epochs))]
        return [(path, torch.load(path, weights_only=True)) for path in paths]

    (first, _), (_, together), _ = run("together", 250, 500, 750)
    ((_, alone),) = run("alone", 500)
    assert together["optimizer"]["state"]["sum_of_norms"] > 0
    assert together["optimizer"]["state"][0]["average_sign"].abs().max() > 0
    ((_, whole),) = run("whole", 500, random_seed=250)
    ((_, continued),) = run("continued", 250, trainer_checkpoint=str(first))
    for name in ("model", "optimizer"):
        assert differences(continued[name], whole[name]) == differences(together[name], alone[name]) == []
