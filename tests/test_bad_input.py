"""Invalid input: exit status 2, one line on stderr with the flag, its value and a remedy, and no output files."""

import numpy as np
import pytest
import torch

from tests.conftest import MATRIX, ROOT, TENSOR

RUNNER, LIST = "dmf_experiment_runner.py", "dmf_multiple_experiments_runner.py"
GENERATOR, PLOTTER = "dmf_data_generator.py", "dmf_results_plotter.py"
TC_RUNNER, TC_LIST = "tc_experiment_runner.py", "tc_multiple_experiments_runner.py"
TC_GENERATOR, TC_PLOTTER = "tc_data_generator.py", "tc_results_plotter.py"
DATA, TC_DATA = f"-dataset_path {MATRIX}", f"-dataset_path {TENSOR}"
DEFAULT = MATRIX.relative_to(ROOT)
CURVE = f"-experiments_checkpoint_paths {MATRIX} -experiments_names a"

# Command line, and text that the error message must contain: for each check one.
REFUSED = {
    RUNNER: [
        (f"{DATA} -depth 0", "-depth 0: must be an integer of at least 1"),
        (f"{DATA} -random_seed {2**32}", f"-random_seed {2**32}: must be an integer of at least -1 and at most"),
        (f"{DATA} -optimizer momentum -momentum 1", "-momentum 1: must be a finite number of at least 0 and less th"),
        (f"{DATA} -experiment_name a/b", "-experiment_name a/b: must be part of a file name"),
        (f"{DATA} -experiment_name {'é' * 80}", "1 to 150 bytes"),
        (f"{DATA} -output_dir {MATRIX}/x", f"-output_dir {MATRIX}/x: {MATRIX} is not a folder"),
        ("", f"-dataset_path {DEFAULT}: no such file; run from the repository's root, {ROOT}, or give the path"),
        ("-dataset_path=", "-dataset_path '': no such file; give the path of an existing one"),
        (f"-dataset_path {ROOT}", f"-dataset_path {ROOT}: is not a regular file"),
        (f"{DATA} -optimizer group_rmsprop", "-optimizer: invalid choice: 'group_rmsprop' (choose from"),
        (f"{DATA} -optimizer adam -momentum 0.5", "-momentum 0.5: has no effect with -optimizer adam; leave it out"),
        (f"{DATA} -optimizer adam -engine native", "-engine native: has no kernel for Adam; give auto or torch"),
        (f"{DATA} -hidden_dim 2 -depth 1", "-hidden_dim 2: there are no inner factors at -depth 1; give a depth"),
        (f"{DATA} -hidden_dim 1 -enforce_pos_det", "-hidden_dim 1: the determinant of the product is 0; give at"),
        (f"{DATA} -epoch 5", "-epoch 5: unknown flag; did you mean -epochs?"),
        (f"{DATA} -num_samples 4", "has only 3 samples"),
        (f"{DATA} -enforce_pos_det -enforce_neg_det", "-enforce_neg_det: contradicts -enforce_pos_det"),
        (f"{DATA} -tracked_e2e_value_of 0 2", "-tracked_e2e_value_of 0 2: the matrix is 2x2"),
        (f"{DATA} -init_alpha -1", "-init_alpha -1.0: is a standard deviation"),
        (f"{DATA} -enforce_pos_det -init_alpha 0", "-enforce_pos_det: cannot be reached"),
        (f"{DATA} -trainer_checkpoint {MATRIX}", f"-trainer_checkpoint {MATRIX}: is not a checkpoint"),
        ("-dataset_path bad/code.pt", "code.pt: is not a torch.save file, is damaged, or holds more than plain data"),
        ("-dataset_path bad/shape.pt", "'A' has shape (3, 2, 3)"),
        ("-dataset_path bad/nan.pt", "'y' holds NaN or infinity"),
        ("-dataset_path bad/rectangle.pt -enforce_pos_det", "-enforce_pos_det: the product is 2x3"),
    ],
    LIST: [("-repetitions 0", "-repetitions 0: must be an integer of at least 1")],
    GENERATOR: [
        ("-rank 51", "-rank 51: a 50x50 target has rank 50 at most"),
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
        (f"-observed_file {MATRIX}", f"-observed_file {MATRIX}: has no effect without -target_file; leave it out"),
        (f"-target_file {MATRIX} -rank 5", "-rank 5: has no effect with -target_file; leave it out"),
        ("-task_type completion -num_samples 2501", "-num_samples 2501: a 50x50 target has 2500 entries"),
        ("-file_name nan.pt -output_dir bad", "-file_name nan.pt: bad/nan.pt exists and is not overwritten"),
    ],
    PLOTTER: [
        (f"-experiments_checkpoint_paths {MATRIX}", "required: -experiments_names"),
        (f"-experiments_checkpoint_paths {MATRIX} -experiments_names a b", "-experiments_names a b: there are 1"),
        (CURVE.replace(str(MATRIX), str(ROOT)), f"{ROOT}: is a folder; give a checkpoint file, or the folder to"),
        (f"-experiments_dir {MATRIX}", f"-experiments_dir {MATRIX}: is not a folder; give the path of one"),
        ("-experiments_dir . -map lr lr", "-map lr lr: give two different parameters"),
        ("-experiments_dir . -map lr depth -above 1 -below 2", "-below 2.0: contradicts -above; give only one"),
        ("-experiments_dir . -map lr depth -y e2e_rank", "-y e2e_rank: has no effect with -map; leave it out"),
        (f"{CURVE} -save_plot_to x.jpg", "-save_plot_to x.jpg: must end in .png or .pdf or .svg"),
        (f"{CURVE} -y a b", "-y a b: give one metric, or -x epoch"),
        (f"{CURVE} -x epoch -show_bound", "-show_bound: has no effect with -x epoch; leave it out"),
        (f"{CURVE} -at_loss 1e-3", "-at_loss 0.001: is for maps; give -map PARAM PARAM as well, or leave it out"),
        (f"{CURVE} -map lr depth", f"-experiments_checkpoint_paths {MATRIX}: has no effect with -map; leave it out"),
        (CURVE, "-save_plot_to: is needed"),
        (f"{CURVE} -save_plot_to x.png", "is not a checkpoint"),
        (f"{CURVE.replace(str(MATRIX), 'bad/untracked.pt')} -save_plot_to x.png", "-tracked_e2e_value_of 0 0"),
        (
            f"{CURVE.replace(str(MATRIX), 'bad/curve.pt')} -save_plot_to x.png -plot_title $\\foo$",
            "-plot_title $\\foo$: it or a name is not valid mathematical text",
        ),
    ],
    TC_RUNNER: [
        (f"{TC_DATA} -use_adaptive_lr -optimizer momentum", "-use_adaptive_lr: contradicts -optimizer momentum; give"),
        (f"{TC_DATA} -track_component_norms 65", "-track_component_norms 65: the factorization has 64 components"),
        (f"{TC_DATA} -num_samples 513", "has only 512 entries"),
        (DATA, "'target_tensor'"),
        ("-dataset_path bad/tensor_order.pt", "'train_indices_order'"),
        ("-dataset_path bad/tensor_zero.pt", "nothing but zeros"),
        ("-dataset_path bad/tensor_large.pt", "the norm of 'target_tensor' is outside 1e-150 to 1e150; scale it"),
    ],
    TC_LIST: [(f"{TC_DATA} -lr 0", "-lr 0: must be a finite number greater than 0")],
    TC_GENERATOR: [
        ("-target_tensor_cp_rank 0", "-target_tensor_cp_rank 0: must be at least 1, or -1"),
        (
            "-target_fro_norm 1e42",
            "-target_fro_norm 1e42: must be a finite number of at least 1e-15 and less than 1e+15",
        ),
        ("-mode_dim_size 100 -order 5", "-mode_dim_size 100: of order 5 makes 1.0e+10 entries"),
    ],
    TC_PLOTTER: [
        ("", "required: -experiments_dir"),
        ("-experiments_dir none", "-experiments_dir none: no such folder"),
        ("-experiments_dir . -map order dimension -against_epochs mse_loss", "-against_epochs mse_loss: has no effect"),
        ("-experiments_dir bad -save_plot_to x.png", "-experiments_dir bad: holds no experiment that can"),
    ],
}


class ExecutesCode:
    """Object whose unpickling calls print."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.fixture
def bad_files(tmp_path):
    """Creates files in the folder `bad`."""
    (tmp_path / "bad").mkdir()
    good = torch.load(MATRIX, weights_only=True)
    tracker = {"name": "x", "epoch_values": torch.ones(1), "epochs_with_values": torch.ones(1, dtype=torch.int64)}
    contents = {
        "code": {**good, "extra": ExecutesCode()},
        "shape": {**good, "A": torch.zeros(3, 2, 3)},
        "nan": {**good, "y": torch.tensor([1, np.nan, 0])},
        "rectangle": {"A": torch.ones(3, 2, 3), "y": torch.ones(3), "target_matrix": torch.ones(2, 3)},
        "untracked": {"train_evaluator": {"sse_loss_div_2": tracker}, "val_evaluator": {}},
        "curve": {"train_evaluator": {"sse_loss_div_2": tracker}, "val_evaluator": {"e2e_0_0_value": tracker}},
        "tensor_order": {"target_tensor": torch.ones(2, 2, 2), "train_indices_order": [0, *range(7)]},
        "tensor_zero": {"target_tensor": torch.zeros(2, 2, 2), "train_indices_order": list(range(8))},
        "tensor_large": {
            "target_tensor": torch.full((2, 2, 2), 1e200, dtype=torch.float64),
            "train_indices_order": [0],
        },
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"bad/{name}.pt")


@pytest.mark.parametrize("script, line, expected", [(script, *case) for script in REFUSED for case in REFUSED[script]])
def test_invalid_input_is_refused(script, line, expected, run_main, bad_files, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = run_main(script, *line.split())
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"{script}: ")
    assert expected in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("script", REFUSED)
def test_unknown_flag_is_refused(script, run_script):
    result = run_script(script, "-no_such_flag", 3)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"{script}: -no_such_flag 3: unknown flag; -h lists the flags\n"
