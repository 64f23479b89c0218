import pytest
import torch

from common.plotting.tensor_completion import draw_tensor_completion, read_results, summarize, table
from tests.plotting.folders import METRICS, TARGET, make_tensor_run, texts_of

RUN = {"num_samples": 50, "init_std": 1e-3}


def draw(directory, title=None):
    results, _ = read_results(str(directory))
    return draw_tensor_completion(results, {"statistic": "median", "plot_title": title})[0]


def test_read_results_of_this_and_original_code(tmp_path):
    make_tensor_run(tmp_path, "a", {**RUN, "status": {"finished": True, "stop_reason": "zero_loss"}})
    make_tensor_run(tmp_path, "b", {**RUN, "init_std": 1e-2, "other": None, "random_seed": -1})
    make_tensor_run(tmp_path, "c_tensor_samples_60_init_2.5e-3_2020_01_01-10_10_10")
    make_tensor_run(tmp_path, "c_tensor_samples_70_2020_01_01-10_10_10", target=None)
    results, skipped = read_results(str(tmp_path))
    assert skipped == []
    found = [(run.values["num_samples"], run.values.get("init_std")) for run, _ in results]
    assert found == [(50, 1e-3), (50, 1e-2), (60, 2.5e-3), (70, None)]
    methods = list(dict.fromkeys(row["method"] for row in summarize(results)))
    assert methods == ["linear", "tf, init 1e-2", "tf, init 2.5e-3", "tf, init 1e-3", "model"]


def test_unusable_folders_are_skipped_with_reason(tmp_path):
    diverged = {**RUN, "status": {"stop_reason": "diverged"}}
    changed = {"rank_not_found": {"ranks": (-1, 9, 1)}, "nan": {"errors": (None, 0.5)}}
    changed |= {"diverged": {"parameters": diverged}, "nameless": {"parameters": None}}
    for name in ("good", *changed, "damaged", "no_dictionary", "bad_target", "unfinished"):
        make_tensor_run(tmp_path, name, **{"parameters": RUN, **changed.get(name, {})})
    (tmp_path / "damaged" / METRICS).write_text('{"model_')
    (tmp_path / "no_dictionary" / METRICS).write_text("[]")
    (tmp_path / "bad_target/targets_tensor.pt").write_text("x")
    (tmp_path / "unfinished" / METRICS).unlink()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "a_file.txt").write_text("x")
    results, skipped = read_results(str(tmp_path))
    assert [run.path.name for run, _ in results] == ["good", "rank_not_found"]
    expected = {
        "rank_not_found": "rank of the model was not found",
        "nan": "not a number",
        "diverged": "diverged",
        "nameless": "number of samples",
        "damaged": "is not JSON",
        "no_dictionary": "does not hold a dictionary",
        "bad_target": "is not a torch.save file",
        "unfinished": "not finished; -resume continues it",
        "foreign": "no tensor completion experiment",
    }
    lines = dict(line.split(": ", 1) for line in skipped)
    assert lines.keys() == expected.keys()
    assert all(reason in lines[name] for name, reason in expected.items())


def test_different_targets_raise(tmp_path):
    """Unless each seed has a random target."""
    make_tensor_run(tmp_path, "a", RUN)
    make_tensor_run(tmp_path, "b", {**RUN, "random_target": True}, target=TARGET + 1)
    assert len(read_results(str(tmp_path))[0]) == 2
    make_tensor_run(tmp_path, "c", RUN, target=TARGET + 1)
    with pytest.raises(ValueError, match="a and c have different targets"):
        read_results(str(tmp_path))


def make_repetitions(directory):
    """Makes five runs for each pair of number of observations and std; errors are 1, …, 5 times a scale."""
    for num_samples, std, scale in ((100, 1e-2, 1e-2), (100, 1e-3, 1e-4), (200, 1e-2, 1e-3), (200, 1e-3, 1e-6)):
        for k in range(5):
            name, parameters = f"{num_samples}_{std}_{k}", {"num_samples": num_samples, "init_std": std}
            make_tensor_run(directory, name, parameters, ranks=(1 + k, 9, 1), errors=((1 + k) * scale, 0.5))


def test_medians_and_quartiles(tmp_path):
    make_repetitions(tmp_path)
    rows = summarize(read_results(str(tmp_path))[0])

    def quartiles(method, quantity):
        (row,) = (row for row in rows if (row["method"], row["num_samples"]) == (method, 200))
        columns = [f"{quantity}_{name}" for name in ("lower_quartile", "median", "upper_quartile")]
        return [row[column] for column in (*columns, "repetitions")]

    assert quartiles("tf, init 1e-3", "error") == pytest.approx([2e-6, 3e-6, 4e-6, 5])
    assert quartiles("tf, init 1e-3", "rank") == [2, 3, 4, 5]
    assert quartiles("linear", "error") == [0.5, 0.5, 0.5, 1]
    assert quartiles("linear", "rank") == [9, 9, 9, 1]
    lines = table(rows).splitlines()
    assert len(lines) == 1 + 6
    (line,) = (line for line in lines if "200" in line and "1e-3" in line)
    assert " ".join(line.split()) == "200 tf, init 1e-3 3.000e-06 [2.000e-06, 4.000e-06] 3 [2, 4] 5"


def test_figure_of_errors_and_ranks(tmp_path):
    make_repetitions(tmp_path)
    figure = draw(tmp_path, "title")
    errors, ranks = figure.axes
    assert (errors.get_ylabel(), ranks.get_ylabel()) == ("reconstruction error", "rank")
    assert (errors.get_yscale(), ranks.get_yscale(), ranks.get_ylim()[0]) == ("log", "linear", 0)
    names = ["linear", "tf, init 1e-2", "tf, init 1e-3"]
    assert texts_of(ranks.get_legend()) == [*names, "ground truth"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "# of observations"
        linear, *others = [each.lines[0].get_xdata() for each in axes.containers if each.get_label() in names]
        assert linear.tolist() == [100, 200]
        # The error bars of methods do not overlap.
        assert (others[0] < others[1]).all()
        assert all(abs(x - linear).max() < 2 for x in others)
    (truth,) = (line for line in ranks.lines if line.get_label() == "ground truth")
    assert set(truth.get_ydata()) == {1}
    assert (figure.get_suptitle(), figure.get_supxlabel()) == ("title", "median, quartiles over 5 seeds")


def test_linear_counts_once_for_each_dataset(tmp_path):
    """Ranks that the original code found for one tensor differ; those of another dataset are a repetition."""
    for number, (dataset, std, rank) in enumerate([("a", 1e-2, 8), ("a", 1e-3, 9), ("a", 1e-3, 13), ("b", 1e-3, 10)]):
        parameters = {"num_samples": 50, "init_std": std, "random_seed": number, "dataset_path": f"{dataset}.pt"}
        make_tensor_run(tmp_path, str(number), parameters, ranks=(1, rank, 1))
    rows = [row for row in summarize(read_results(str(tmp_path))[0]) if row["method"] == "linear"]
    assert [(row["repetitions"], row["rank_median"]) for row in rows] == [(2, 9.5)]


def test_figure_without_ranks_has_one_panel_and_default_title_describes_the_target(tmp_path):
    make_tensor_run(tmp_path / "a", "a", RUN, ranks=None, target=torch.ones(2, 3, 4))
    figure = draw(tmp_path / "a")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "reconstruction error"
    assert texts_of(axes.get_legend()) == ["linear", "tf, init 1e-3"]
    assert figure.get_suptitle() == "2x3x4 (order 3) tensor completion"
    make_tensor_run(tmp_path / "a", "b", RUN, target=torch.ones(2, 3, 4))
    assert draw(tmp_path / "a").get_suptitle() == "2x3x4 (order 3) rank 1 tensor completion"
    make_tensor_run(tmp_path / "c", "a_tensor_samples_70_2020_01_01-10_10_10", target=None)
    assert draw(tmp_path / "c").get_suptitle() == ""


def test_runs_with_different_flags_are_separate_lines(tmp_path):
    """Runs with different learning rates are not repetitions; runs with equal seeds are counted once."""
    identity = {"run": {"lr": 0.01, **RUN}, "outputs": [], "inputs": {}, "occurrence": 1}
    for lr in (0.01, 0.02):
        for number, seed in enumerate((0, 1, 1)):
            parameters = {**RUN, "lr": lr, "random_seed": seed, "provenance": {"identity": identity}}
            make_tensor_run(tmp_path, f"{lr}_{number}", parameters)
    results, skipped = read_results(str(tmp_path))
    rows = {row["method"]: row["repetitions"] for row in summarize(results)}
    assert rows == {"linear": 1, "tf, init 1e-3, lr 0.01": 2, "tf, init 1e-3, lr 0.02": 2}
    assert [line.split(": ")[1] for line in skipped] == ["was run again, with the same seed"] * 2
