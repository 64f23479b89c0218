"""Runs the scripts as a user does, most of them in this process."""

import json
import re
import runpy
import signal
import subprocess
import sys

import pytest
import torch

from common.cli import Parser
from common.sweeps.plans import planned_jobs
from common.training.compilation import compiled_kernel
from common.training.native_metrics import metrics_2x2
from tests.conftest import ROOT, folders_in
from tests.sweeps.test_resume import signal_during_training

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
PLOTS = {"mse_loss", "sse_loss_div_2", "fro_e2e_norm", "nuc_e2e_norm", "e2e_effective_rank", "e2e_rank"}
PLOTS |= {"distance_from_rank_1", "reconstruction_error", "e2e_matrix_values", "e2e_singular_values"}
PNG = b"\x89PNG\r\n\x1a\n"


def assert_success(result):
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result


def read_parameters(folder):
    return json.loads((folder / "run_params.json").read_text())


def single_item(paths):
    (path,) = paths
    return path


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_all_flags_without_heavy_imports(script, run_script):
    result = assert_success(run_script(script, "-h"))
    namespace = runpy.run_path(str(ROOT / script))
    parser = namespace.get("parser")
    if parser is None:
        parser = Parser()
        namespace["add_flags"](parser)
    for action in parser._actions[1:]:
        assert re.search(rf"^  -{action.dest}\b", result.stdout, re.MULTILINE)
    code = f"import sys, runpy\nsys.argv = ['x', '-h']\ntry: runpy.run_path('{script}', run_name='__main__')"
    code += "\nexcept SystemExit: pass\nassert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_matrix_experiment_with_all_outputs_and_plot(run_script, run_main, tmp_path, dataset, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    flags = ["-dataset_path", dataset, "-random_seed", 1, "-output_dir", "out", "-experiment_name", "one"]
    flags += ["-depth", 2, "-init_alpha", "1e-3", "-use_balanced_init", "--enforce_pos_det", "-lr", "6e-3"]
    flags += ["-epochs", "20000", "-tracked_e2e_value_of", 0, 0, "-tracked_e2e_value_of", 1, 1]
    flags += ["-file_log", "-store_checkpoints", "-plot_metrics", "-save_results", "-track_singular_values"]
    result = assert_success(run_script("dmf_experiment_runner.py", *flags))
    folder = single_item(folders_in(tmp_path / "out"))
    assert re.fullmatch(r"one_\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d", folder.name)
    assert result.stdout.startswith("1 experiment\n1/1 out/one_")
    assert "zero loss" in result.stdout

    parameters = read_parameters(folder)
    assert parameters["tracked_e2e_value_of"] == [[0, 0], [1, 1]]
    assert parameters["status"]["stop_reason"] == "zero_loss"
    assert parameters["provenance"]["torch"] == torch.__version__
    assert {path.stem for path in (folder / "plots").iterdir()} == PLOTS
    assert all(path.read_bytes().startswith(PNG) for path in (folder / "plots").iterdir())
    log = (folder / f"{folder.name}.log").read_text()
    for expected in ("depth: 2", "model parameters: 8", "zero loss, epoch", "sse_loss_div_2"):
        assert expected in log

    last_epoch = parameters["status"]["last_epoch"]
    checkpoint_path = single_item((folder / "checkpoints").iterdir())
    assert checkpoint_path.name.endswith(f"_epoch_{last_epoch}.pt")
    checkpoint = torch.load(checkpoint_path, weights_only=True)
    product = torch.load(folder / "final_e2e_matrix.pt", weights_only=True)
    results = json.loads((folder / "final_metrics_values.json").read_text())
    torch.testing.assert_close(checkpoint["model"]["layers.0"] @ checkpoint["model"]["layers.1"], product)
    assert results["e2e_0_0_value"] == pytest.approx(product[0, 0].item())
    assert results["fit_epochs"] == last_epoch + 1 == checkpoint["epoch"] + 1
    tracker = checkpoint["val_evaluator"]["singular_value_1"]
    assert tracker["name"] == "singular_value_1"
    assert tracker["epochs_with_values"].tolist() == list(range(49, last_epoch + 1, 50))

    paths = ["-experiments_checkpoint_paths", checkpoint_path, checkpoint_path, "-experiments_names", "first", "second"]
    for figure, begin in (("figure.png", PNG[:4]), ("new/figure.pdf", b"%PDF"), ("figure.svg", b"<?xm")):
        assert_success(run_main("dmf_results_plotter.py", *paths, "-save_plot_to", figure))
        assert (tmp_path / figure).read_bytes().startswith(begin)


def test_default_experiment_list(run_main, tmp_path, dataset):
    quick = ["-epochs", 200, "-dataset_path", dataset, "-output_dir", "out"]
    assert_success(run_main("dmf_multiple_experiments_runner.py", *quick))
    folder = single_item(folders_in(tmp_path / "out"))
    assert folder.name.startswith("completion_2x2_c_1_1_0_exp_")
    parameters = read_parameters(folder)
    expected = {"enforce_pos_det": True, "save_every_num_val": 100, "init_alpha": 8e-3, "lr": 3e-3, "depth": 3}
    assert expected.items() <= parameters.items()
    assert {path.stem for path in (folder / "plots").iterdir()} == PLOTS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run_is_saved_and_continued(number, run_main, tmp_path, dataset, monkeypatch):
    common = ["-dataset_path", dataset, "-random_seed", 0, "-store_checkpoints", "-save_results", "-file_log"]
    endless = ["-lr", 1e-6, "-dtype", "float64", "-epochs", 10**12, "-validate_every", 1000]
    with monkeypatch.context() as patched:
        signal_during_training(patched, number, lambda trainer: trainer.epoch > 0)
        result = run_main("dmf_experiment_runner.py", *common, *endless, "-output_dir", "out")
    assert result.returncode == 128 + number
    assert result.stderr.startswith("dmf_experiment_runner.py: interrupted; to continue: python ")
    assert result.stderr.endswith(" -resume\n")
    assert result.stderr.count("\n") == 1
    assert "interrupted, epoch" in result.stdout
    folder = single_item(folders_in(tmp_path / "out"))
    status = read_parameters(folder)["status"]
    assert (status["finished"], status["stop_reason"]) == (False, "interrupted")

    checkpoint = single_item((folder / "checkpoints").iterdir())
    assert checkpoint.name.endswith(f"_epoch_{status['last_epoch']}.pt")
    more = ["-trainer_checkpoint", checkpoint, "-validate_every", 1000, "-epochs", 1000, "-output_dir", "more"]
    assert_success(run_main("dmf_experiment_runner.py", *common, *more))
    continued = json.loads((single_item(folders_in(tmp_path / "more")) / "final_metrics_values.json").read_text())
    assert continued["fit_epochs"] == status["last_epoch"] + 1001


@pytest.mark.parametrize("asked, used", [("auto", "native"), ("native", "native"), ("torch", "torch")])
def test_engine_selection_is_recorded(asked, used, run_main, tmp_path, dataset):
    result = run_main("dmf_experiment_runner.py", "-dataset_path", dataset, "-epochs", 100, "-engine", asked)
    assert assert_success(result).stderr == ""
    recorded = read_parameters(single_item(folders_in(tmp_path / "outputs/dmf")))
    assert (recorded["engine"], recorded["provenance"]["engine"]) == (asked, used)


def test_missing_gpu_is_reported(run_main, dataset, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    run = ["dmf_experiment_runner.py", "-dataset_path", dataset, "-epochs", 100]
    result = run_main(*run, "-gpu_id", 3)
    expected = "-gpu_id 3: there is no GPU that PyTorch can use; the CPU is used\n"
    assert (result.returncode, result.stderr) == (0, expected)
    for flags in (["-gpu_id", 0], ["-gpu_id", 3, "-disable_gpu"]):
        assert_success(run_main(*run, *flags))


def test_torch_engine_is_used_without_compiler(run_main, tmp_path, dataset, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    for loaded in (compiled_kernel, metrics_2x2):
        loaded.cache_clear()
    common = ["-dataset_path", dataset, "-epochs", 100]
    many = ["-plan", "many_seeds", "-repetitions", 1, "-output_dir", "out"]  # of several depths
    result = run_main("dmf_multiple_experiments_runner.py", *common, *many)
    assert result.returncode == 0
    line = "the native engine needs a C compiler (cc, gcc or clang), which was not found; the torch engine is used\n"
    assert result.stderr == line
    assert {read_parameters(each)["provenance"]["engine"] for each in folders_in(tmp_path / "out")} == {"torch"}
    refused = run_main("dmf_experiment_runner.py", *common, "-engine", "native", "-output_dir", "none")
    problem = "-engine native: needs a C compiler (cc, gcc or clang), which was not found; give auto or torch\n"
    assert (refused.returncode, refused.stderr) == (2, f"dmf_experiment_runner.py: {problem}")
    assert not (tmp_path / "none").exists()
    metrics_2x2.cache_clear()


def test_tensor_completion_sweep_and_plot(run_main, tmp_path):
    generate = ["-mode_dim_size", 4, "-random_seed", 3, "-target_fro_norm", 2.5, "-custom_file_name", "small"]
    assert_success(run_main("tc_data_generator.py", *generate))
    dataset = single_item((tmp_path / "data/tc").iterdir())
    assert re.fullmatch(r"small_\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d\.pt", dataset.name)
    content = torch.load(dataset, weights_only=True)
    assert content["target_tensor"].norm().item() == pytest.approx(2.5, rel=1e-6)
    assert sorted(content["train_indices_order"]) == list(range(64))

    edited = (ROOT / "tc_multiple_experiments_runner.py").read_text()
    edited = re.sub(r'"num_samples": \[.*\]', '"num_samples": [40, 63]', edited)
    (tmp_path / "edited.py").write_text(edited.replace("REPETITIONS = 5", "REPETITIONS = 2"))
    result = assert_success(run_main(tmp_path / "edited.py", "-dataset_path", dataset, "-output_dir", "out"))
    assert result.stdout.startswith("8 experiments, 40 to 63 of 64 observations\n")
    folders = folders_in(tmp_path / "out")
    assert len(folders) == 8
    written = {"model_tensor.pt", "memorizer_tensor.pt", "targets_tensor.pt", "run_params.json", "checkpoints", "plots"}
    written.add("tensor_rank_and_reconstruction_metrics.json")
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {*written, single_item(folder.glob("*.log")).name}
        assert {path.name for path in (folder / "plots").iterdir()} == {"mse_loss.png", "reconstruction_error.png"}

    plot = ["-experiments_dir", "out", "-plot_title", "small", "-save_plot_to", "figure.png"]
    result = assert_success(run_main("tc_results_plotter.py", *plot))
    assert result.stdout.startswith("8 finished experiments, 0 folders skipped\n")
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(("40 ", "63 "))]
    methods = [("linear", "1"), ("tf,", "2"), ("tf,", "2")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [(n, *method) for n in ("40", "63") for method in methods]
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


def test_default_tensor_completion_experiments():
    namespace = runpy.run_path(str(ROOT / "tc_multiple_experiments_runner.py"))
    command = namespace["parser"].parse(["-dataset_path", str(ROOT / "README.md")])
    lists = {"": namespace["DEFAULT"]}, "outputs/tc", "tc_results_plotter.py", namespace["name"]
    (job,) = planned_jobs(command, namespace["add_flags"], *lists)
    listed = job.experiments
    assert len(listed) == 100
    assert {each["random_seed"] for each in listed} == {0, 1, 2, 3, 4}
    assert {each["num_samples"] for each in listed} == {*range(50, 500, 50), 511}
    assert listed[0]["experiment_name"] == "c_README_samples_50_init_1e-2_seed_0"
    assert listed[-1]["experiment_name"] == "c_README_samples_511_init_1e-3_seed_4"
    expected = {"lr": 0.01, "optimizer": "group_rmsprop", "epochs": 10**6, "validate_every": 100}
    expected |= {"save_every_num_val": 5, "stop_on_zero_loss_tol": 1e-6, "tensor_rank_tol": 1e-6}
    expected |= {"compute_final_tensor_ranks": True}
    assert all(each[name] == value for each in listed for name, value in expected.items())
