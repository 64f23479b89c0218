"""Invalid input: exit status 2, one line on stderr with the flag, its value and a remedy, and no output files."""

import importlib.util
import os
import sys

import numpy as np
import pytest
import torch

from common.cli import UserError
from tests.conftest import ROOT

RUNNER, LIST = "dmf_experiment_runner.py", "dmf_multiple_experiments_runner.py"
GENERATOR, PLOTTER = "dmf_data_generator.py", "dmf_results_plotter.py"
TC_RUNNER, TC_LIST = "tc_experiment_runner.py", "tc_multiple_experiments_runner.py"
TC_GENERATOR, TC_PLOTTER = "tc_data_generator.py", "tc_results_plotter.py"
TENSOR = f"-dataset_path {ROOT / 'data/tc/tensor_rank_1_fro_1_order_3_dim_8.pt'}"
GOOD = str(ROOT / "data/dmf/completion_2x2_w_1_1_0.pt")
DATA = f"-dataset_path {GOOD}"
DEFAULT = "data/dmf/completion_2x2_w_1_1_0.pt"

# Script, command line, and text that the error message must contain.
INVALID_FLAGS = [
    *[
        (script, line, expected)
        for script in (RUNNER, LIST)
        for line, expected in [
            (f"{DATA} -depth 0", "-depth 0: must be an integer of at least 1"),
            (f"{DATA} -depth 2.5", "-depth 2.5: must be an integer"),
            (f"{DATA} --depth three", "-depth three: must be an integer"),
            (f"{DATA} -epochs 0", "-epochs 0: must be an integer of at least 1"),
            (f"{DATA} -epochs inf", "-epochs inf: must be an integer"),
            (f"{DATA} -validate_every -1", "-validate_every -1: must be"),
            (f"{DATA} -save_every_num_val 0", "-save_every_num_val 0: must be"),
            (f"{DATA} -lr -1e-3", "-lr -1e-3: must be a finite number greater than 0"),
            (f"{DATA} -lr 0", "-lr 0: must be a finite number greater than 0"),
            (f"{DATA} -lr nan", "-lr nan: must be a finite number"),
            (f"{DATA} -init_alpha inf", "-init_alpha inf: must be a finite number"),
            (f"{DATA} -stop_on_zero_loss_tol -1", "-stop_on_zero_loss_tol -1: must be a finite number of at least 0"),
            (f"{DATA} -num_samples 0", "-num_samples 0: must be an integer of at least 1"),
            (f"{DATA} -random_seed -2", "-random_seed -2: must be an integer of at least -1"),
            (f"{DATA} -gpu_id -1", "-gpu_id -1: must be an integer of at least 0"),
            (f"{DATA} -dtype float16", "-dtype: invalid choice: 'float16' (choose from"),
            (f"{DATA} -weight_init_type uniform", "-weight_init_type: invalid choice: 'uniform' (choose from"),
            (f"{DATA} -experiment_name a/b", "-experiment_name a/b: must be part of a file name"),
            (f"{DATA} -experiment_name a\x1b[31m", "[31m: must be part of a file name: 1 to 150 bytes, printable"),
            (f"{DATA} -output_dir {'x' * 256}/y", "/y: a part of this path has 256 bytes; give at most 255"),
            (f"-dataset_path {'x' * 256}", "x: no such file"),
            (f"{DATA} -output_dir {GOOD}/x", f"-output_dir {GOOD}/x: {GOOD} is not a folder"),
            ("-dataset_path none.pt", "-dataset_path none.pt: no such file"),
            (f"-dataset_path {ROOT}", f"-dataset_path {ROOT}: is not a regular file"),
            (f"{DATA} -trainer_checkpoint none.pt", "-trainer_checkpoint none.pt: no such file"),
            (f"{DATA} -tracked_e2e_value_of 0 -1", "-tracked_e2e_value_of -1: must be an integer of at least 0"),
            (f"{DATA} -tracked_e2e_value_of 0", "-tracked_e2e_value_of: expected 2 arguments"),
            (f"{DATA} -lr", "-lr: expected one argument"),
            (f"{DATA} -optimizer sgd", "-optimizer: invalid choice: 'sgd' (choose from"),
            (f"{DATA} -optimizer group_rmsprop", "-optimizer: invalid choice: 'group_rmsprop' (choose from"),
            (
                f"{DATA} -optimizer momentum -momentum 1",
                "-momentum 1: must be a finite number of at least 0 and less th",
            ),
            (f"{DATA} -momentum 0.5", "-momentum 0.5: has no effect with -optimizer gd; leave it out"),
            (f"{DATA} -optimizer adam -momentum 0.5", "-momentum 0.5: has no effect with -optimizer adam; leave"),
            (f"{DATA} -weight_decay -1", "-weight_decay -1: must be a finite number of at least 0"),
            (f"{DATA} -optimizer adam -engine native", "-engine native: has no kernel for Adam; give auto or torch"),
            (f"{DATA} -hidden_dim -1", "-hidden_dim -1: must be an integer of at least 0"),
            (f"{DATA} -hidden_dim 2 -depth 1", "-hidden_dim 2: there are no inner factors at -depth 1; give a depth"),
            (f"{DATA} -hidden_dim 1 -enforce_pos_det", "-hidden_dim 1: the determinant of the product is 0; give at"),
            (f"{DATA} -epoch 5", "-epoch 5: unknown flag; did you mean -epochs?"),
            (f"{DATA} -plot_metrics yes", "-plot_metrics yes: takes no value"),
            (
                f"{DATA} -experiment_random_seed 3",
                "-experiment_random_seed 3: unknown flag; did you mean -random_seed?",
            ),
        ]
    ],
    *[
        (script, f"{TENSOR} {line}", expected)
        for script in (TC_RUNNER, TC_LIST)
        for line, expected in [
            (
                "-use_adaptive_lr -optimizer momentum",
                "-use_adaptive_lr: contradicts -optimizer momentum; give only one",
            ),
            (
                "-optimizer=gd --use_adaptive_lr",
                "-use_adaptive_lr: contradicts -optimizer gd; give only one of the two",
            ),
            ("-use_adaptive_lr yes", "-use_adaptive_lr yes: takes no value"),
        ]
    ],
    (RUNNER, "", f"-dataset_path {DEFAULT}: no such file; run from the repository's root, {ROOT}, or give the path"),
    (LIST, "", f"-dataset_path {DEFAULT}: no such file; run from the repository's root, {ROOT}, or give the path"),
    (RUNNER, "-dataset_path=", "-dataset_path '': no such file; give the path of an existing one"),
    (RUNNER, f"{DATA} -experiment_name {'é' * 80}", "1 to 150 bytes"),
    (RUNNER, f"{DATA} -random_seed {2**32}", f"-random_seed {2**32}: must be an integer of at least -1 and at most"),
    (LIST, "-repetitions 0", "-repetitions 0: must be an integer of at least 1"),
    (LIST, "-rep 3", "-rep 3: unknown flag; did you mean -repetitions?"),
    (GENERATOR, "-num_samples 0", "-num_samples 0: must be"),
    (GENERATOR, "-num_rows 0", "-num_rows 0: must be"),
    (GENERATOR, "-num_cols x", "-num_cols x: must be"),
    (GENERATOR, "-rank 0", "-rank 0: must be an integer of at least 1"),
    (GENERATOR, "-rank 51", "-rank 51: a 50x50 target has rank 50 at most"),
    (GENERATOR, "-sensing_std 0", "-sensing_std 0: must be a finite number greater than 0"),
    (GENERATOR, "-task_type denoising", "-task_type: invalid choice: 'denoising' (choose from"),
    (GENERATOR, "-random_seed 1.5", "-random_seed 1.5: must be an integer"),
    (GENERATOR, "-custom_file_name a/b", "-custom_file_name a/b: must be part of a file name"),
    (GENERATOR, "-file_name x", "-file_name x: must end in .pt"),
    (GENERATOR, "-file_name x.pt -custom_file_name y", "-file_name: contradicts -custom_file_name"),
    (GENERATOR, f"-output_dir {GOOD}", f"-output_dir {GOOD}: {GOOD} is not a folder"),
    (GENERATOR, "-num_cols 49 -use_symmetric_target", "-use_symmetric_target: the target is 50x49"),
    (GENERATOR, "-use_custom_target -use_symmetric_target", "-use_symmetric_target: contradicts -use_custom_target"),
    (GENERATOR, "-use_custom_target -num_rows 1", "-use_custom_target: the target is 1x50"),
    (GENERATOR, "-target_entries 1 2 3", "-target_entries 1.0 2.0 3.0: there are 3; a 50x50 target has 2500"),
    (GENERATOR, "-num_rows 1 -num_cols 2 -target_entries 1 nan", "-target_entries nan: must be a finite number"),
    (GENERATOR, "-target_entries 1 -use_custom_target", "-target_entries: contradicts -use_custom_target"),
    (GENERATOR, "-store_entries", "-store_entries: Gaussian sensing matrices do not observe entries"),
    (GENERATOR, "-unobserved_entry 0 1", "-unobserved_entry 0 1: needs -use_custom_sensing_matrices"),
    (GENERATOR, "-use_custom_sensing_matrices -unobserved_entry 0 50", "-unobserved_entry 0 50: the target is 50x50"),
    (GENERATOR, "-rank 1 -num_rows 1 -num_cols 1 -use_custom_sensing_matrices", "no entry of the 1x1 target is left"),
    (GENERATOR, f"-observed_file {GOOD}", f"-observed_file {GOOD}: has no effect without -target_file; leave it out"),
    (GENERATOR, f"-target_file {GOOD} -rank 5", "-rank 5: has no effect with -target_file; leave it out"),
    (TC_GENERATOR, f"-target_file {GOOD} -order 3", "-order 3: has no effect with -target_file; leave it out"),
    (GENERATOR, "-task_type completion -num_samples 2501", "-num_samples 2501: a 50x50 target has 2500 entries"),
    (PLOTTER, "-experiments_names a", "required: -experiments_checkpoint_paths"),
    (PLOTTER, f"-experiments_checkpoint_paths {GOOD}", "required: -experiments_names"),
    (PLOTTER, f"-experiments_checkpoint_paths {GOOD} -experiments_names a b", "-experiments_names a b: there are 1"),
    (PLOTTER, "-experiments_checkpoint_paths none.pt -experiments_names a", "none.pt: no such file"),
    (
        PLOTTER,
        f"-experiments_checkpoint_paths {GOOD} {ROOT} {ROOT / 'data'} -experiments_names a b c",
        f"-experiments_checkpoint_paths {ROOT}: is a folder; give a checkpoint file, or the folder to -experiments_dir",
    ),
    (PLOTTER, f"-experiments_dir {GOOD}", f"-experiments_dir {GOOD}: is not a folder; give the path of one"),
    (PLOTTER, "-experiments_dir . -map lr", "-map: expected 2 arguments"),
    (PLOTTER, "-experiments_dir . -map lr lr", "-map lr lr: give two different parameters"),
    (PLOTTER, "-experiments_dir . -map lr depth -at_loss 0", "-at_loss 0: must be a finite number greater than 0"),
    (PLOTTER, "-experiments_dir . -map lr depth -above inf", "-above inf: must be a finite number"),
    (PLOTTER, "-experiments_dir . -map lr depth -above 1 -below 2", "-below 2.0: contradicts -above; give only one"),
    (PLOTTER, "-experiments_dir . -map lr depth -y e2e_rank", "-y e2e_rank: has no effect with -map; leave it out"),
    *[
        (PLOTTER, f"-experiments_checkpoint_paths {GOOD} -experiments_names a {line}", expected)
        for line, expected in [
            ("-min_loss 0", "-min_loss 0: must be a finite number greater than 0"),
            ("-save_plot_to x.jpg", "-save_plot_to x.jpg: must end in .png or .pdf or .svg"),
            (f"-save_plot_to {'x' * 250}.png", "x.png: give a name of at most 240 bytes"),
            (f"-save_plot_to {GOOD}/x.png", f"-save_plot_to {GOOD}/x.png: {GOOD} is not a folder"),
            ("-y a b", "-y a b: give one metric, or -x epoch"),
            ("-x step", "-x: invalid choice: 'step' (choose from"),
            ("-x epoch -show_bound", "-show_bound: has no effect with -x epoch; leave it out"),
            ("-x epoch -min_loss 1e-3", "-min_loss 0.001: has no effect with -x epoch; leave it out"),
            ("-statistic mode", "-statistic: invalid choice: 'mode' (choose from"),
            ("-at_loss 1e-3", "-at_loss 0.001: is for maps; give -map PARAM PARAM as well, or leave it out"),
            ("-map lr depth", f"-experiments_checkpoint_paths {GOOD}: has no effect with -map; leave it out"),
        ]
    ],
]

INVALID_FLAGS += [
    *[
        (script, line, expected)
        for script in (TC_RUNNER, TC_LIST)
        for line, expected in [
            (f"{TENSOR} -init_std -1", "-init_std -1: must be a finite number of at least 0"),
            (f"{TENSOR} -tensor_rank_tol 0", "-tensor_rank_tol 0: must be a finite number greater than 0"),
            (f"{TENSOR} -track_component_norms -1", "-track_component_norms -1: must be an integer of at least 0"),
            (f"{TENSOR} -track_sharpness 1", "-track_sharpness 1: takes no value"),
            (f"{TENSOR} -num_components -1", "-num_components -1: must be an integer of at least 0"),
            (f"{TENSOR} -lr 0", "-lr 0: must be a finite number greater than 0"),
            (f"{TENSOR} -init 1", "-init 1: unknown flag; did you mean -init_std?"),
            ("-dataset_path none.pt", "-dataset_path none.pt: no such file"),
        ]
    ],
    (TC_GENERATOR, "-target_tensor_cp_rank 0", "-target_tensor_cp_rank 0: must be at least 1, or -1"),
    (TC_GENERATOR, "-target_tensor_cp_rank -2", "-target_tensor_cp_rank -2: must be an integer of at least -1"),
    (TC_GENERATOR, "-target_fro_norm 0", "-target_fro_norm 0: must be a finite number greater than 0"),
    (TC_GENERATOR, "-mode_dim_size 0", "-mode_dim_size 0: must be an integer of at least 1"),
    (TC_GENERATOR, "-mode_dim_size 100 -order 5", "-mode_dim_size 100: of order 5 makes 1.0e+10 entries"),
    (TC_GENERATOR, "-order 1", "-order 1: must be an integer of at least 2"),
    (TC_GENERATOR, "-file_name x", "-file_name x: must end in .pt"),
    (TC_PLOTTER, "", "required: -experiments_dir"),
    (TC_PLOTTER, "-experiments_dir none", "-experiments_dir none: no such folder"),
    (TC_PLOTTER, "-experiments_dir . -metric mse_loss", "-metric mse_loss: is for maps; give -map PARAM PARAM as well"),
    (TC_PLOTTER, "-experiments_dir . -map_counts", "-map_counts: is for maps; give -map PARAM PARAM as well"),
    (
        TC_PLOTTER,
        "-experiments_dir . -map order dimension -against_epochs mse_loss",
        "-against_epochs mse_loss: has no effect with -map; leave it out",
    ),
    (TC_PLOTTER, "-experiments_dir . -save_plot_to x.gif", "-save_plot_to x.gif: must end in .png or .pdf or .svg"),
]

INVALID_FILES_AND_COMBINATIONS = [
    (RUNNER, f"{DATA} -num_samples 4", "-num_samples 4: ", "has only 3 samples"),
    (RUNNER, f"{DATA} -enforce_pos_det -enforce_neg_det", "-enforce_neg_det: contradicts -enforce_pos_det"),
    (RUNNER, f"{DATA} -tracked_e2e_value_of 0 2", "-tracked_e2e_value_of 0 2: the matrix is 2x2"),
    (RUNNER, f"{DATA} -init_alpha -1", "-init_alpha -1.0: is a standard deviation"),
    (RUNNER, f"{DATA} -enforce_pos_det -init_alpha 0", "-enforce_pos_det: cannot be reached", "-init_alpha 0"),
    (RUNNER, f"{DATA} -enforce_neg_det -weight_init_type identity", "-enforce_neg_det: cannot be reached", "identity"),
    (RUNNER, f"{DATA} -trainer_checkpoint {GOOD}", f"-trainer_checkpoint {GOOD}: is not a checkpoint"),
    (RUNNER, "-dataset_path bad/text.pt", "-dataset_path bad/text.pt: is not a torch.save file"),
    (
        RUNNER,
        "-dataset_path bad/code.pt",
        "-dataset_path bad/code.pt: is not a torch.save file, is damaged, or holds more than plain data",
    ),
    (RUNNER, "-dataset_path bad/list.pt", "-dataset_path bad/list.pt: holds a list"),
    (
        RUNNER,
        "-dataset_path bad/without_y.pt",
        "'y' is missing, expected a tensor; data/README.md describes the format",
    ),
    (RUNNER, "-dataset_path bad/shape.pt", "'A' has shape (3, 2, 3)"),
    (RUNNER, "-dataset_path bad/nan.pt", "'y' holds NaN or infinity"),
    (RUNNER, "-dataset_path bad/rectangle.pt -enforce_pos_det", "-enforce_pos_det: the product is 2x3"),
    (
        RUNNER,
        "-dataset_path bad/sparse.pt",
        "bad/sparse.pt: 'A' is of torch.float32, torch.sparse_coo, expected a dense tensor of real numbers",
    ),
    (RUNNER, "-dataset_path bad/empty.pt", "-dataset_path bad/empty.pt: is not a torch.save file"),
    (GENERATOR, "-num_rows 2 -num_cols 2 -rank 1 -sensing_std 1e39", "-sensing_std 1e+39: makes numbers that float32"),
    (GENERATOR, "-num_rows 1 -num_cols 2 -target_entries 0 1e39", "-target_entries 0.0 1e+39: makes numbers"),
    (TC_GENERATOR, "-target_fro_norm 1e42", "-target_fro_norm 1e+42: makes entries"),
    (
        TC_RUNNER,
        f"{TENSOR} -track_component_norms 65",
        "-track_component_norms 65: the factorization has 64 components",
    ),
    (TC_RUNNER, f"{TENSOR} -num_samples 513", "-num_samples 513: ", "has only 512 entries"),
    (TC_RUNNER, f"-dataset_path {GOOD}", "'target_tensor' is missing"),
    (
        TC_RUNNER,
        "-dataset_path bad/tensor_order.pt",
        "'train_indices_order' holds entry 0 2 times",
    ),
    (TC_RUNNER, "-dataset_path bad/tensor_zero.pt", "nothing but zeros"),
    (TC_RUNNER, "-dataset_path bad/tensor_large.pt", "'target_tensor' is too large or too small"),
    (RUNNER, "-dataset_path bad/large.pt", "'target_matrix' is too large or too small"),
    (RUNNER, "-dataset_path bad/small.pt", "'target_matrix' is too large or too small"),
    (TC_RUNNER, "-dataset_path bad/tensor_booleans.pt", "'train_indices_order' is no list or tensor of integers"),
    (TC_RUNNER, f"{TENSOR} -trainer_checkpoint {GOOD}", f"-trainer_checkpoint {GOOD}: is not a checkpoint"),
    (TC_LIST, f"{TENSOR} -num_samples 513", "-num_samples 513: ", "has only 512 entries"),
    (TC_GENERATOR, "-file_name text.pt -output_dir bad", "-file_name text.pt: bad/text.pt exists"),
    (TC_PLOTTER, "-experiments_dir bad", "-save_plot_to: is needed"),
    (TC_PLOTTER, "-experiments_dir bad -save_plot_to x.png", "-experiments_dir bad: holds no experiment that can"),
    (LIST, f"{DATA} -num_samples 4", "-num_samples 4: ", "has only 3 samples"),
    (GENERATOR, "-file_name text.pt -output_dir bad", "-file_name text.pt: bad/text.pt exists and is not overwritten"),
    (PLOTTER, f"-experiments_checkpoint_paths {GOOD} -experiments_names a", "-save_plot_to: is needed"),
    (PLOTTER, f"-experiments_checkpoint_paths {GOOD} -experiments_names a -save_plot_to x.png", "is not a checkpoint"),
    (
        PLOTTER,
        "-experiments_checkpoint_paths bad/untracked.pt -experiments_names a -save_plot_to x.png",
        "-tracked_e2e_value_of 0 0",
    ),
    (
        PLOTTER,
        "-experiments_checkpoint_paths bad/curve.pt -experiments_names a -save_plot_to x.png -plot_title $\\foo$",
        "-plot_title $\\foo$: it or a name is not valid mathematical text",
    ),
    (TC_PLOTTER, "-experiments_dir runs -save_plot_to x.png -plot_title $\\foo$", "-plot_title $\\foo$: it or a name"),
]


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
        "list": [1, 2],
        "without_y": {"A": good["A"], "target_matrix": good["target_matrix"]},
        "shape": {**good, "A": torch.zeros(3, 2, 3)},
        "nan": {**good, "y": torch.tensor([1, np.nan, 0])},
        "rectangle": {"A": torch.ones(3, 2, 3), "y": torch.ones(3), "target_matrix": torch.ones(2, 3)},
        "sparse": {**good, "A": good["A"].to_sparse()},
        "untracked": {"train_evaluator": {"sse_loss_div_2": tracker}, "val_evaluator": {}},
        "curve": {"train_evaluator": {"sse_loss_div_2": tracker}, "val_evaluator": {"e2e_0_0_value": tracker}},
    }
    contents["tensor_order"] = {"target_tensor": torch.ones(2, 2, 2), "train_indices_order": [0, 0, *range(2, 8)]}
    contents["tensor_booleans"] = {**contents["tensor_order"], "train_indices_order": [False, True, *range(2, 8)]}
    contents["tensor_zero"] = {"target_tensor": torch.zeros(2, 2, 2), "train_indices_order": list(range(8))}
    contents["tensor_large"] = {
        "target_tensor": torch.full((2, 2, 2), 1e200, dtype=torch.float64),
        "train_indices_order": list(range(8)),
    }
    contents |= {
        name: {**good, "target_matrix": torch.full((2, 2), value, dtype=torch.float64)}
        for name, value in [("large", 1e200), ("small", 1e-200)]
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    (folder / "text.pt").write_text("no dataset")
    (folder / "empty.pt").touch()
    results = tmp_path / "runs" / "x_samples_10" / "tensor_rank_and_reconstruction_metrics.json"
    results.parent.mkdir(parents=True)
    results.write_text('{"model_reconstruction_error": 0.1, "memorizer_reconstruction_error": 0.2}')
    return folder


@pytest.fixture
def assert_refused(tmp_path, monkeypatch):
    """Returns a function that checks that a script refuses a command line and writes no files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")

    def check(script, line, *expected):
        before = list_files(tmp_path)
        spec = importlib.util.spec_from_file_location("script", ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [script, *line.split()])
        with pytest.raises(UserError) as error:
            module.main()
        for each in expected:
            assert each in str(error.value)
        assert list_files(tmp_path) == before

    return check


def list_files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("script, line, expected", INVALID_FLAGS)
def test_invalid_flags_are_refused(script, line, expected, assert_refused):
    assert_refused(script, line, expected)


@pytest.mark.parametrize(
    "script, line, expected", [(script, line, each) for script, line, *each in INVALID_FILES_AND_COMBINATIONS]
)
def test_invalid_files_and_flag_combinations_are_refused(script, line, expected, assert_refused, bad_files):
    assert_refused(script, line, *expected)


@pytest.mark.parametrize("script", [RUNNER, LIST, GENERATOR, PLOTTER, TC_RUNNER, TC_LIST, TC_GENERATOR, TC_PLOTTER])
def test_unknown_flag_prints_one_line_and_exits_with_2(script, run_script, tmp_path):
    result = run_script(script, "-no_such_flag", 3)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"{script}: -no_such_flag 3: unknown flag; -h lists the flags\n"
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_non_regular_file_is_refused(kind, assert_refused, tmp_path):
    path = tmp_path / "x.pt"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    for flag in ("dataset_path", "trainer_checkpoint"):
        line = f"{DATA} -{flag} {path}" if flag != "dataset_path" else f"-{flag} {path}"
        assert_refused(RUNNER, line, f"-{flag} {path}: is not a regular file")
    assert_refused(PLOTTER, f"-experiments_checkpoint_paths {path} -experiments_names a", "is not a regular file")
