"""Invalid input: exit status 2, one line on stderr with the flag, its value and a remedy, and no output files."""

import os

import numpy as np
import pytest
import torch

from tests.conftest import ROOT

RUNNER, LIST = "dmf_experiment_runner.py", "dmf_multiple_experiments_runner.py"
GENERATOR, PLOTTER = "dmf_data_generator.py", "dmf_results_plotter.py"
TC_RUNNER, TC_LIST = "tc_experiment_runner.py", "tc_multiple_experiments_runner.py"
TC_GENERATOR, TC_PLOTTER = "tc_data_generator.py", "tc_results_plotter.py"
TENSOR = f"-dataset_path {ROOT / 'data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt'}"
GOOD = str(ROOT / "data/dmf/completion_2x2_w_1_1_0.pt")
DATA = f"-dataset_path {GOOD}"
DEFAULT = "data/dmf/completion_2x2_w_1_1_0.pt"
CURVE = f"-experiments_checkpoint_paths {GOOD} -experiments_names a"

# Command line, and text that the error message must contain.
OF_FLAGS = {
    RUNNER: [
        (f"{DATA} -depth 0", "-depth 0: must be an integer of at least 1"),
        (f"{DATA} -epochs 0", "-epochs 0: must be an integer of at least 1"),
        (f"{DATA} -save_every_num_val 0", "-save_every_num_val 0: must be"),
        (f"{DATA} -lr 0", "-lr 0: must be a finite number greater than 0"),
        (f"{DATA} -stop_on_zero_loss_tol -1", "-stop_on_zero_loss_tol -1: must be a finite number of at least 0"),
        (f"{DATA} -num_samples 0", "-num_samples 0: must be an integer of at least 1"),
        (f"{DATA} -random_seed -2", "-random_seed -2: must be an integer of at least -1"),
        (f"{DATA} -random_seed {2**32}", f"-random_seed {2**32}: must be an integer of at least -1 and at most"),
        (f"{DATA} -experiment_name a\x1b[31m", ": must be part of a file name: printable"),
        (f"{DATA} -output_dir {GOOD}/x", f"-output_dir {GOOD}/x: {GOOD} is not a folder"),
        ("", f"-dataset_path {DEFAULT}: no such file; run from the repository's root, {ROOT}, or give the path"),
        ("-dataset_path=", "-dataset_path '': no such file; give the path of an existing one"),
        (f"-dataset_path {ROOT}", f"-dataset_path {ROOT}: is not a regular file"),
        (f"{DATA} -trainer_checkpoint none.pt", "-trainer_checkpoint none.pt: no such file"),
        (f"{DATA} -tracked_e2e_value_of 0 -1", "-tracked_e2e_value_of -1: must be an integer of at least 0"),
        (f"{DATA} -optimizer group_rmsprop", "-optimizer: invalid choice: 'group_rmsprop' (choose from"),
        (f"{DATA} -optimizer momentum -momentum 1", "-momentum 1: must be a finite number of at least 0 and less th"),
        (f"{DATA} -optimizer adam -momentum 0.5", "-momentum 0.5: has no effect with -optimizer adam; leave it out"),
        (f"{DATA} -optimizer adam -engine native", "-engine native: has no kernel for Adam; give auto or torch"),
        (f"{DATA} -hidden_dim 2 -depth 1", "-hidden_dim 2: there are no inner factors at -depth 1; give a depth"),
        (f"{DATA} -hidden_dim 1 -enforce_pos_det", "-hidden_dim 1: the determinant of the product is 0; give at"),
        (f"{DATA} -epoch 5", "-epoch 5: unknown flag; did you mean -epochs?"),
    ],
    LIST: [
        (f"{DATA} -depth 0", "-depth 0: must be an integer of at least 1"),
        ("", f"-dataset_path {DEFAULT}: no such file; run from the repository's root, {ROOT}, or give the path"),
        ("-repetitions 0", "-repetitions 0: must be an integer of at least 1"),
        ("-rep 3", "-rep 3: unknown flag; did you mean -repetitions?"),
    ],
    GENERATOR: [
        ("-num_samples 0", "-num_samples 0: must be"),
        ("-rank 0", "-rank 0: must be an integer of at least 1"),
        ("-rank 51", "-rank 51: a 50x50 target has rank 50 at most"),
        ("-sensing_std 0", "-sensing_std 0: must be a finite number greater than 0"),
        ("-file_name x", "-file_name x: must end in .pt"),
        ("-file_name x.pt -custom_file_name y", "-file_name: contradicts -custom_file_name"),
        ("-num_cols 49 -use_symmetric_target", "-use_symmetric_target: the target is 50x49"),
        ("-use_custom_target -use_symmetric_target", "-use_symmetric_target: contradicts -use_custom_target"),
        ("-use_custom_target -num_rows 1", "-use_custom_target: the target is 1x50"),
        ("-target_entries 1 2 3", "-target_entries 1.0 2.0 3.0: there are 3; a 50x50 target has 2500"),
        ("-store_entries", "-store_entries: Gaussian sensing matrices do not observe entries"),
        ("-unobserved_entry 0 1", "-unobserved_entry 0 1: needs -use_custom_sensing_matrices"),
        ("-use_custom_sensing_matrices -unobserved_entry 0 50", "-unobserved_entry 0 50: the target is 50x50"),
        ("-rank 1 -num_rows 1 -num_cols 1 -use_custom_sensing_matrices", "no entry of the 1x1 target is left"),
        (f"-observed_file {GOOD}", f"-observed_file {GOOD}: has no effect without -target_file; leave it out"),
        (f"-target_file {GOOD} -rank 5", "-rank 5: has no effect with -target_file; leave it out"),
        ("-task_type completion -num_samples 2501", "-num_samples 2501: a 50x50 target has 2500 entries"),
    ],
    PLOTTER: [
        (f"-experiments_checkpoint_paths {GOOD}", "required: -experiments_names"),
        (f"-experiments_checkpoint_paths {GOOD} -experiments_names a b", "-experiments_names a b: there are 1"),
        ("-experiments_checkpoint_paths none.pt -experiments_names a", "none.pt: no such file"),
        (
            f"-experiments_checkpoint_paths {GOOD} {ROOT} -experiments_names a b",
            f"-experiments_checkpoint_paths {ROOT}: is a folder; give a checkpoint file, or the folder to -experiment",
        ),
        (f"-experiments_dir {GOOD}", f"-experiments_dir {GOOD}: is not a folder; give the path of one"),
        ("-experiments_dir . -map lr lr", "-map lr lr: give two different parameters"),
        ("-experiments_dir . -map lr depth -above 1 -below 2", "-below 2.0: contradicts -above; give only one"),
        ("-experiments_dir . -map lr depth -y e2e_rank", "-y e2e_rank: has no effect with -map; leave it out"),
        (f"{CURVE} -save_plot_to x.jpg", "-save_plot_to x.jpg: must end in .png or .pdf or .svg"),
        (f"{CURVE} -y a b", "-y a b: give one metric, or -x epoch"),
        (f"{CURVE} -x epoch -show_bound", "-show_bound: has no effect with -x epoch; leave it out"),
        (f"{CURVE} -at_loss 1e-3", "-at_loss 0.001: is for maps; give -map PARAM PARAM as well, or leave it out"),
        (f"{CURVE} -map lr depth", f"-experiments_checkpoint_paths {GOOD}: has no effect with -map; leave it out"),
    ],
    TC_RUNNER: [
        (f"{TENSOR} -use_adaptive_lr -optimizer momentum", "-use_adaptive_lr: contradicts -optimizer momentum; give"),
        (f"{TENSOR} -init_std -1", "-init_std -1: must be a finite number of at least 0"),
        (f"{TENSOR} -tensor_rank_tol 0", "-tensor_rank_tol 0: must be a finite number greater than 0"),
        (f"{TENSOR} -track_component_norms 65", "-track_component_norms 65: the factorization has 64 components"),
        (f"{TENSOR} -num_samples 513", "has only 512 entries"),
    ],
    TC_LIST: [(f"{TENSOR} -lr 0", "-lr 0: must be a finite number greater than 0")],
    TC_GENERATOR: [
        ("-target_tensor_cp_rank 0", "-target_tensor_cp_rank 0: must be at least 1, or -1"),
        ("-target_fro_norm 0", "-target_fro_norm 0: must be a finite number greater than 0"),
        ("-mode_dim_size 0", "-mode_dim_size 0: must be an integer of at least 1"),
        ("-mode_dim_size 100 -order 5", "-mode_dim_size 100: of order 5 makes 1.0e+10 entries"),
    ],
    TC_PLOTTER: [
        ("", "required: -experiments_dir"),
        ("-experiments_dir none", "-experiments_dir none: no such folder"),
        ("-experiments_dir . -metric mse_loss", "-metric mse_loss: is for maps; give -map PARAM PARAM as well"),
        ("-experiments_dir . -map order dimension -against_epochs mse_loss", "-against_epochs mse_loss: has no effect"),
        ("-experiments_dir . -save_plot_to x.gif", "-save_plot_to x.gif: must end in .png or .pdf or .svg"),
    ],
}

OF_FILES_AND_COMBINATIONS = {
    RUNNER: [
        (f"{DATA} -num_samples 4", "has only 3 samples"),
        (f"{DATA} -enforce_pos_det -enforce_neg_det", "-enforce_neg_det: contradicts -enforce_pos_det"),
        (f"{DATA} -tracked_e2e_value_of 0 2", "-tracked_e2e_value_of 0 2: the matrix is 2x2"),
        (f"{DATA} -init_alpha -1", "-init_alpha -1.0: is a standard deviation"),
        (f"{DATA} -enforce_pos_det -init_alpha 0", "-enforce_pos_det: cannot be reached"),
        (f"{DATA} -enforce_neg_det -weight_init_type identity", "-enforce_neg_det: cannot be reached"),
        (f"{DATA} -trainer_checkpoint {GOOD}", f"-trainer_checkpoint {GOOD}: is not a checkpoint"),
        ("-dataset_path bad/text.pt", "-dataset_path bad/text.pt: is not a torch.save file"),
        (
            "-dataset_path bad/code.pt",
            "bad/code.pt: is not a torch.save file, is damaged, or holds more than plain data",
        ),
        ("-dataset_path bad/without_y.pt", "bad/without_y.pt: "),
        ("-dataset_path bad/shape.pt", "'A' has shape (3, 2, 3)"),
        ("-dataset_path bad/nan.pt", "'y' holds NaN or infinity"),
        ("-dataset_path bad/rectangle.pt -enforce_pos_det", "-enforce_pos_det: the product is 2x3"),
        ("-dataset_path bad/sparse.pt", "bad/sparse.pt: "),
    ],
    LIST: [(f"{DATA} -num_samples 4", "has only 3 samples")],
    GENERATOR: [
        ("-file_name text.pt -output_dir bad", "-file_name text.pt: bad/text.pt exists and is not overwritten")
    ],
    PLOTTER: [
        (CURVE, "-save_plot_to: is needed"),
        (f"{CURVE} -save_plot_to x.png", "is not a checkpoint"),
        (f"{CURVE.replace(GOOD, 'bad/untracked.pt')} -save_plot_to x.png", "-tracked_e2e_value_of 0 0"),
        (
            f"{CURVE.replace(GOOD, 'bad/curve.pt')} -save_plot_to x.png -plot_title $\\foo$",
            "-plot_title $\\foo$: it or a name is not valid mathematical text",
        ),
    ],
    TC_RUNNER: [
        (f"-dataset_path {GOOD}", "'target_tensor'"),
        ("-dataset_path bad/tensor_order.pt", "'train_indices_order'"),
        ("-dataset_path bad/tensor_zero.pt", "nothing but zeros"),
        ("-dataset_path bad/tensor_booleans.pt", "'train_indices_order'"),
    ],
    TC_GENERATOR: [("-file_name text.pt -output_dir bad", "-file_name text.pt: bad/text.pt exists")],
    TC_PLOTTER: [
        ("-experiments_dir bad -save_plot_to x.png", "-experiments_dir bad: holds no experiment that can"),
        ("-experiments_dir runs -save_plot_to x.png -plot_title $\\foo$", "-plot_title $\\foo$: it or a name"),
    ],
}


def cases(of_scripts):
    listed = [(script, line, expected) for script, lines in of_scripts.items() for line, expected in lines]
    return pytest.mark.parametrize("script, line, expected", listed)


class ExecutesCode:
    """Object whose unpickling calls print."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.fixture
def bad_files(tmp_path):
    """Creates invalid dataset files in the folder `bad`, and results of a tensor in the folder `runs`."""
    folder = tmp_path / "bad"
    folder.mkdir()
    good = torch.load(GOOD, weights_only=True)
    tracker = {"name": "x", "epoch_values": torch.ones(1), "epochs_with_values": torch.ones(1, dtype=torch.int64)}
    contents = {
        "code": {**good, "extra": ExecutesCode()},
        "without_y": {"A": good["A"], "target_matrix": good["target_matrix"]},
        "shape": {**good, "A": torch.zeros(3, 2, 3)},
        "nan": {**good, "y": torch.tensor([1, np.nan, 0])},
        "rectangle": {"A": torch.ones(3, 2, 3), "y": torch.ones(3), "target_matrix": torch.ones(2, 3)},
        "sparse": {**good, "A": good["A"].to_sparse()},
        "untracked": {"train_evaluator": {"sse_loss_div_2": tracker}, "val_evaluator": {}},
        "curve": {"train_evaluator": {"sse_loss_div_2": tracker}, "val_evaluator": {"e2e_0_0_value": tracker}},
    }
    order = list(range(8))
    contents |= {
        "tensor_order": {"target_tensor": torch.ones(2, 2, 2), "train_indices_order": [0, *order[:-1]]},
        "tensor_booleans": {"target_tensor": torch.ones(2, 2, 2), "train_indices_order": [False, True, *order[2:]]},
        "tensor_zero": {"target_tensor": torch.zeros(2, 2, 2), "train_indices_order": order},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    (folder / "text.pt").write_text("no dataset")
    results = tmp_path / "runs" / "x_samples_10" / "tensor_rank_and_reconstruction_metrics.json"
    results.parent.mkdir(parents=True)
    results.write_text('{"model_reconstruction_error": 0.1, "memorizer_reconstruction_error": 0.2}')
    return folder


@pytest.fixture
def assert_refused(tmp_path, run_main):
    """Returns a function that checks that a script refuses a command line with one line and writes no files."""

    def check(script, line, expected):
        before = sorted(tmp_path.rglob("*"))
        result = run_main(script, *line.split())
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(f"{script}: ")
        assert expected in result.stderr
        assert sorted(tmp_path.rglob("*")) == before

    return check


@cases(OF_FLAGS)
def test_invalid_flags_are_refused(script, line, expected, assert_refused):
    assert_refused(script, line, expected)


@cases(OF_FILES_AND_COMBINATIONS)
def test_invalid_files_and_flag_combinations_are_refused(script, line, expected, assert_refused, bad_files):
    assert_refused(script, line, expected)


@pytest.mark.parametrize("script", OF_FLAGS)
def test_unknown_flag_is_refused(script, run_script):
    result = run_script(script, "-no_such_flag", 3)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"{script}: -no_such_flag 3: unknown flag; -h lists the flags\n"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_non_regular_file_is_refused(kind, assert_refused, tmp_path):
    path = tmp_path / "x.pt"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    for line in (f"-dataset_path {path}", f"{DATA} -trainer_checkpoint {path}"):
        assert_refused(RUNNER, line, f"{path}: is not a regular file")
    assert_refused(PLOTTER, CURVE.replace(GOOD, str(path)), "is not a regular file")
