"""Tests of -random_target: the target and the order of its entries come from the run's seed."""

import json
from dataclasses import replace

import pytest
import torch

from common.cli import UserError
from common.sweeps.sweep import run_sweep
from tests.conftest import KINDS, TENSOR, make_experiment, parse_parameters, runs_by_number
from tests.stress.kills import differences, read_outputs

SMALL = {
    "dmf": {"num_rows": 6, "num_cols": 5, "rank": 2, "num_samples": 20},
    "tc": {"mode_dim_size": 4, "order": 3, "target_tensor_cp_rank": 2, "num_samples": 40},
}


def parameters(kind, **given):
    """Returns the parameters of a small run without -dataset_path."""
    return parse_parameters(kind, **{"random_target": True, **SMALL[kind], **given})


def problem(kind, **given):
    return make_experiment(kind, **{"random_target": True, **SMALL[kind], **given}).problem


@pytest.mark.parametrize("kind", KINDS)
def test_target_is_drawn_from_the_seed(kind):
    one, same, other = (problem(kind, random_seed=seed).dataset for seed in (3, 3, 4))
    target = "target_matrix" if kind == "dmf" else "target_tensor"
    entries = "stored_entries" if kind == "dmf" else "observed_entries"
    for name in (target, entries):
        assert torch.equal(getattr(one, name), getattr(same, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    values = getattr(one, target)
    assert values.shape == ((6, 5) if kind == "dmf" else (4, 4, 4))
    assert values.norm().item() == pytest.approx(6 if kind == "dmf" else 1)
    assert torch.linalg.matrix_rank(values.flatten(1), rtol=1e-5) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_target_is_independent_of_the_initialization(kind):
    """With the same numbers, the first factors of a run would be multiples of the target's factors."""
    correlations = []
    for seed in range(200):
        found = problem(kind, random_seed=seed)
        target = found.dataset.target_matrix if kind == "dmf" else found.dataset.target_tensor
        count = min(target.numel(), found.initial_factors()[0].numel())
        pair = torch.stack([target.flatten()[:count], found.initial_factors()[0].flatten()[:count]])
        correlations.append(torch.corrcoef(pair)[0, 1].item())
    assert abs(sum(correlations) / 200) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_resumed_and_continued(kind, tmp_path):
    common = {"store_checkpoints": True, **({"save_results": True} if kind == "dmf" else {})}
    file = "final_e2e_matrix.pt" if kind == "dmf" else "model_tensor.pt"
    whole = [parameters(kind, **common, random_seed=seed, epochs=600, output_dir=tmp_path / "a") for seed in (1, 2)]
    run_sweep(KINDS[kind][0], whole)
    half = [parameters(kind, **common, random_seed=seed, epochs=300, output_dir=tmp_path / "b") for seed in (1, 2)]
    run_sweep(KINDS[kind][0], half)
    for number in (1, 2):
        ((recorded, folder),) = runs_by_number(tmp_path / "b")[number]
        assert (recorded["random_target"], recorded["dataset_path"], recorded["random_seed"]) == (True, "", number)
        assert recorded["provenance"]["identity"]["inputs"] == {}
        # The seed of the run that is continued holds.
        (path,) = (folder / "checkpoints").iterdir()
        output_dir = tmp_path / f"c_{number}"
        given = {**common, "random_seed": -1, "epochs": 300, "trainer_checkpoint": path, "output_dir": output_dir}
        continued = parameters(kind, **given)
        run_sweep(KINDS[kind][0], [replace(continued, given=continued.given - {"random_seed"})])
        ((_, one),), ((again, two),) = runs_by_number(tmp_path / "a")[number], runs_by_number(output_dir)[1]
        assert again["random_seed"] == number
        assert torch.equal(*(torch.load(each / file, weights_only=True) for each in (one, two)))
    # A run whose mark is missing is resumed, a finished one is not.
    before = read_outputs(tmp_path / "a")
    ((recorded, folder),) = runs_by_number(tmp_path / "a")[2]
    recorded["status"]["finished"] = False
    (folder / "run_params.json").write_text(json.dumps(recorded))
    run_sweep(KINDS[kind][0], whole, resume=True)
    assert differences(before, read_outputs(tmp_path / "a")) == []


def test_continuing_needs_the_seed_of_the_target(tmp_path):
    """Without it, the run would go on with another target."""
    run_sweep(KINDS["tc"][0], [parameters("tc", epochs=10, random_seed=3, store_checkpoints=True, output_dir=tmp_path)])
    (path,) = tmp_path.glob("*/checkpoints/*.pt")
    with pytest.raises(UserError, match="-random_seed -1: the run that is continued has 3; leave it out"):
        problem("tc", random_seed=-1, trainer_checkpoint=path)
    alone = path.rename(tmp_path / "alone.pt")
    with pytest.raises(UserError, match="the seed of the run that is continued is unknown; give -random_seed"):
        problem("tc", random_seed=-1, trainer_checkpoint=alone)
    assert problem("tc", random_seed=3, trainer_checkpoint=alone).parameters["random_seed"] == 3


def test_flags_that_contradict_each_other():
    with pytest.raises(UserError, match="-order 4: has no effect without -random_target; leave it out"):
        make_experiment("tc", order=4)
    with pytest.raises(UserError, match=r"-dataset_path .*: contradicts -random_target; give only one of the two"):
        make_experiment("tc", random_target=True, dataset_path=TENSOR)
    with pytest.raises(UserError, match="-num_samples 65: the dataset has only 64 entries"):
        problem("tc", num_samples=65)
