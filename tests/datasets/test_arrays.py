"""Data of one's own: files of numbers, unknown entries, and what means the same in a dataset."""

import json

import numpy as np
import pytest
import torch

from common.datasets.matrix_sensing import as_matrix_sensing, load_matrix_sensing
from common.datasets.tensor_completion import as_tensor_completion, load_tensor_completion
from tests.conftest import folders_in
from tests.test_scripts import assert_success

GENERATORS = {"dmf_data_generator.py": load_matrix_sensing, "tc_data_generator.py": load_tensor_completion}


def numbers(*shape, unknown=0.3):
    """Returns an array of which a part is NaN."""
    generator = np.random.default_rng(0)
    array = generator.standard_normal(shape)
    array[generator.random(shape) < unknown] = np.nan
    return array


def write(path, array):
    """Writes an array in the format that the ending of the path says."""
    if path.suffix == ".csv":
        rows = [",".join("" if np.isnan(each) else repr(float(each)) for each in row) for row in array]
        path.write_text("\n".join(["first,second,third"] * ("header" in path.name) + rows) + "\n")
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(array), path)
    else:
        np.save(path, array) if path.suffix == ".npy" else np.savez(path, array)
    return path


def generate(run_main, script, *flags):
    """Runs a generator. Returns the dataset, or the line that refuses the flags."""
    done = run_main(script, *flags, "-output_dir", "made", "-file_name", "x.pt", "-random_seed", 3)
    return done.stderr if done.returncode else GENERATORS[script]("made/x.pt")


@pytest.mark.parametrize("name", ["x.csv", "header.csv", "x.npy", "x.npz", "x.pt", "fortran.npy", "float16.npy"])
@pytest.mark.parametrize("script", GENERATORS)
def test_target_is_read_from_every_format(script, name, run_main, tmp_path):
    array = numbers(4, 3) if script[0] == "d" or name.endswith("csv") else numbers(4, 3, 2)
    array = np.asfortranarray(array) if "fortran" in name else array.astype(">f2" if "float16" in name else float)
    dataset = generate(run_main, script, "-target_file", write(tmp_path / name, array))
    target = dataset.target_matrix if script[0] == "d" else dataset.target_tensor
    np.testing.assert_array_equal(target.where(dataset.known, torch.nan), array)
    assert sorted(dataset.observed_entries.tolist()) == np.flatnonzero(~np.isnan(array)).tolist()
    assert dataset.observed_entries.tolist() != sorted(dataset.observed_entries.tolist())
    if script[0] == "d":
        assert torch.equal(dataset.observations, target.flatten()[dataset.observed_entries])


@pytest.mark.parametrize("name", ["mask.npy", "mask.csv", "flat.npy", "flat.csv", "flat.pt"])
def test_observed_file_says_which_known_entries_may_be_observed(name, run_main, tmp_path):
    array = numbers(6, 5)
    chosen = np.random.default_rng(1).random((6, 5)) < 0.6
    named = chosen if "mask" in name else np.flatnonzero(chosen)[::-1].copy()
    if name.endswith("csv"):
        named = named.astype(float).reshape(len(named), -1)
    flags = "-target_file", write(tmp_path / "x.npy", array), "-observed_file", write(tmp_path / name, named)
    dataset = generate(run_main, "tc_data_generator.py", *flags)
    assert sorted(dataset.observed_entries.tolist()) == np.flatnonzero(chosen & ~np.isnan(array)).tolist()
    assert dataset.known.sum() == np.isfinite(array).sum()


@pytest.mark.parametrize(
    "target, observed, line",
    [
        ("1,2\n3\n", "", "x.csv: has rows of 2 and 1 cells; give each the same number"),
        ("1,2\n3,a\n", "", "x.csv: holds 'a', expected a number, or nothing if unknown; leave row names out"),
        ("a,b\n", "", "x.csv: it has no known entry"),
        ("1,inf\n3,4\n", "", "x.csv: 'target_matrix' holds infinity"),
        (np.array(["a"]), "", "x.npy: holds <U1, expected real numbers"),
        (np.ones(3), "", "x.npy: 'target_matrix' has shape (3,), expected (rows, cols)"),
        (np.array([None]), "", "x.npy: is not a NumPy file, is damaged, or holds Python objects"),
        ("1,2\n3,\n", "3", "y.csv: it names no known entry"),
        ("1,2\n3,4\n", "0\n4\n", "y.csv: it holds 4, expected entries from 0 to 3"),
        ("1,2\n3,4\n", "0\n1\n0\n", "y.csv: it holds entry 0 2 times"),
        ("1,2\n3,4\n", "0\n1.5\n", "y.csv: it holds torch.float64 numbers that are not integers"),
        ("1,2\n3,4\n", "0,1\n1,2\n", "y.csv: it has shape (2, 2), expected (n,) or a mask of shape (2, 2)"),
    ],
)
def test_files_that_are_refused(target, observed, line, run_main, tmp_path):
    path = tmp_path / ("x.csv" if isinstance(target, str) else "x.npy")
    path.write_text(target) if isinstance(target, str) else np.save(path, target)
    (tmp_path / "y.csv").write_text(observed)
    flags = ["-observed_file", "y.csv"] * bool(observed)
    assert line in generate(run_main, "dmf_data_generator.py", "-target_file", path.name, *flags)
    assert not (tmp_path / "made").exists()


def test_what_means_the_same_is_the_same_dataset():
    target, order = torch.arange(1.0, 25).view(2, 3, 4), [0, 5, 7, 23]
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask.view(-1)[order] = True
    fortran = target.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for same in (fortran, target.half(), target.double(), target.int()):
        made = as_tensor_completion({"target_tensor": same, "train_indices_order": order})
        assert torch.equal(made.target_tensor.float(), target)
        assert made.target_tensor.is_contiguous()
    for entries in (mask, mask.int(), mask.flatten().tolist(), torch.tensor(order, dtype=torch.int32)):
        content = {"train_indices_order": entries, "known_entries": entries}
        made = as_tensor_completion({"target_tensor": target, **content})
        assert made.observed_entries.tolist() == order
        assert torch.equal(made.known, mask)
    content = {"target_matrix": target[0], "observed_entries": [2, 1], "y": torch.tensor([[3], [2]]).short()}
    assert as_matrix_sensing(content).observations.tolist() == [3, 2]
    with pytest.raises(ValueError, match="'train_indices_order' holds an entry that is not known"):
        as_tensor_completion({"target_tensor": target.log(), "train_indices_order": [0], "known_entries": [1]})


@pytest.mark.parametrize("kind", ["dmf", "tc"])
def test_errors_are_those_of_known_entries(kind, run_main, tmp_path):
    """What stands at unknown entries changes no number."""
    array = numbers(3, 4)
    write(tmp_path / "x.npy", array)
    generate(run_main, f"{kind}_data_generator.py", "-target_file", "x.npy")
    content, name = torch.load("made/x.pt", weights_only=True), "target_matrix" if kind == "dmf" else "target_tensor"
    torch.save({**content, name: content[name].nan_to_num(1e30)}, "made/other.pt")
    own = {"dmf": ["-save_results", "-init_alpha", 0.5], "tc": ["-compute_final_tensor_ranks", "-init_std", 0.3]}
    flags = ["-num_samples", 5, "-epochs", 400, "-random_seed", 0, "-dtype", "float64", *own[kind]]
    results = []
    for file in ("x", "other"):
        dataset = "-dataset_path", f"made/{file}.pt", "-output_dir", file
        assert "held_out_error" in assert_success(run_main(f"{kind}_experiment_runner.py", *dataset, *flags)).stdout
        (folder,) = folders_in(tmp_path / file)
        results.append(json.loads(next(folder.glob("*metrics*.json")).read_text()))
    found, other = results
    assert found == other
    output = torch.load(next(folder.glob("model_tensor.pt" if kind == "tc" else "final*.pt")), weights_only=True)
    known = ~np.isnan(array)
    held_out = known.copy()
    held_out.flat[list(content["train_indices_order" if kind == "tc" else "observed_entries"][:5])] = False

    def error(matrix, mask):
        return pytest.approx(np.linalg.norm((matrix - array)[mask]) / np.linalg.norm(array[mask]), rel=1e-12)

    assert found["held_out_error"] == error(output.numpy(), held_out)
    name = "model_reconstruction_error" if kind == "tc" else "reconstruction_error"
    assert found[name] == error(output.numpy(), known)
    if kind == "tc":
        assert found["memorizer_reconstruction_error"] == error(np.where(held_out, 0, array), known)
        assert "targets_tensor_rank" not in found
        np.testing.assert_array_equal(torch.load(folder / "targets_tensor.pt", weights_only=True), array)
