import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from common.metrics import theory as bounds
from common.plotting.against_loss import draw_against_loss, draw_on_the_curve, values_below
from common.plotting.histories import Curve, NoBound, NotRecorded, load_curve
from common.plotting.runs import Group, read_groups, require_matrix_run
from tests.conftest import MATRIX, ROOT


def read_lines(directory, **wanted):
    return read_groups(str(directory), require_matrix_run, partial(load_curve, **wanted), True)


def make_tracker(epochs, values, as_lists=False):
    if as_lists:
        return {"epochs_with_values": list(epochs), "epoch_values": list(values)}
    return {"epochs_with_values": torch.tensor(list(epochs)), "epoch_values": torch.tensor(list(values))}


@pytest.mark.parametrize("as_lists", [False, True])
def test_loss_and_entry_are_matched_by_epoch(tmp_path, as_lists):
    """The original code stores the loss of every epoch but the entry only at validations."""
    content = {
        "train_evaluator": {"sse_loss_div_2": make_tracker(range(10), [1.0 / (1 + e) for e in range(10)], as_lists)},
        "val_evaluator": {"e2e_0_0_value": make_tracker([4, 9, 14], [-1.0, 2.0, 3.0], as_lists)},
    }
    torch.save(content, tmp_path / "c.pt")
    curve = load_curve(str(tmp_path / "c.pt"))
    assert curve.epochs.tolist() == [5, 10]
    np.testing.assert_allclose(curve.losses, [1 / 5, 1 / 10])
    assert curve.values.tolist() == [1, 2]


def theory_curve(num_points=20_000, last=5e-5):
    """Returns a run on the curve |W_00| = 1 / √(2ℓ)."""
    losses = np.geomspace(0.9, last, num_points)
    return Curve(np.arange(1, num_points + 1) * 50, losses, 1 / np.sqrt(2 * losses))


def test_value_at_each_loss_is_that_of_the_first_validation_below():
    curve = Curve(np.array([1, 2, 3]), np.array([1.0, 0.1, 1e-2]), np.array([0.0, 2.0, 20.0]))
    stuck = Curve(np.array([1, 2]), np.array([1.0, 0.1]), np.array([0.0, 8.0]))
    losses, values = values_below([curve, stuck], 1.0, 0.02)
    assert (losses[0], losses[-1]) == (1, pytest.approx(0.02))
    np.testing.assert_array_equal(values[:, [0, -1]], [[2, 20], [8, np.nan]])


def draw_curves(**curves):
    figure, _ = draw_against_loss([Group(name, 3, [curve]) for name, curve in curves.items()], "depth 3", 1e-4)
    return figure


def test_figure_matches_paper():
    lower = theory_curve(10_000, 1e-3)
    lower = Curve(lower.epochs, lower.losses, lower.values / 3)
    figure = draw_curves(a=theory_curve(), b=lower)
    axes, bar = figure.axes
    assert figure.get_size_inches() == pytest.approx((3.1, 3.4))
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("loss", "|unobserved entry|", "depth 3")
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((0.9, 1e-4))
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 70
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]

    # The curves end after the first loss below 1e-4 and share one color scale.
    lines = axes.collections
    ends = [line.get_segments()[-1][-1] for line in lines]
    assert 0.99e-4 < ends[0][0] < 1e-4
    assert ends[1][0] == pytest.approx(1e-3)
    assert len({line.norm for line in lines}) == 1
    assert (lines[0].norm.vmin, lines[0].norm.vmax) == (1, lines[0].get_array().max())
    light, dark = lines[0].cmap(0.0)[:3], lines[0].cmap(1.0)[:3]
    assert dark == (0, 0, 0)
    assert light[2] > light[0] > 0.5

    markers = [line for line in axes.lines if line.get_marker() != "None"]
    for marked, curve, expected in zip(markers, (theory_curve(), lower), (4, 3), strict=True):
        assert len(marked.get_xdata()) == expected
        if curve is lower:
            continue
        for power, loss in enumerate(marked.get_xdata(), start=1):
            assert loss == curve.losses[curve.losses < 1.3 * 10.0**-power][0]
    assert [line.get_marker() for line in markers] == ["o", "v"]
    greys = [line.get_color()[0] for line in markers]
    assert greys[0] > greys[1]

    figure.draw_without_rendering()
    assert bar.get_xlabel() == "epochs"
    labels = [label.get_text() for label in bar.get_xticklabels()]
    assert labels == ["1e0", "2.5e5", "5e5", "7.5e5"]


def test_empty_figure_raises():
    with pytest.raises(ValueError, match=r"no loss is larger than 0\.9; give a smaller one"):
        draw_against_loss([Group("", 3, [theory_curve()])], "", 10.0)


def test_theoretical_bound_is_drawn():
    curve = theory_curve()
    curve = Curve(curve.epochs, curve.losses, 1 + curve.losses, (1.0, 1.0, 0.0))
    figure, _ = draw_against_loss([Group("theory", 3, [curve])], "", 1e-4, "e2e_effective_rank", True)
    axes = figure.axes[0]
    (dashes,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(dashes.get_ydata(), bounds.effective_rank(dashes.get_xdata(), 1, 1, 0) - 1)
    assert dashes.get_color() == "0.45"
    assert axes.get_ylabel() == "effective rank − 1"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["theory", "upper bound while det > 0"]


def drawn_lines(axes, style):
    return [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata())]


def test_median_is_solid_only_where_all_runs_are_there():
    curves = [theory_curve(last=last) for last in (5e-5, 5e-5, 5e-5, 1e-3)]
    figure, rows = draw_against_loss([Group("four", 3, curves), Group("three", 3, curves[:3])], "", 1e-4)
    (axes,) = figure.axes
    solid, dashed = drawn_lines(axes, "-"), drawn_lines(axes, "--")
    assert [line.get_xdata()[-1] for line in solid] == pytest.approx([1e-3, 1e-4], rel=0.06)
    assert len(dashed) == 1
    assert dashed[0].get_xdata()[0] == solid[0].get_xdata()[-1]
    assert dashed[0].get_xdata()[-1] == pytest.approx(1e-4)
    assert dashed[0].get_color() == solid[0].get_color()
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["four\n(3 of 4 runs reach 1e-4)", "three"]
    bands = [band for band in axes.collections if len(band.get_paths())]
    assert bands[0].get_alpha() > 2 * bands[1].get_alpha()
    assert bands[1].get_datalim(axes.transData).xmax == solid[0].get_xdata()[-1]
    for row in rows:
        assert row["runs"] == (4 if row["name"] == "four" and row["loss"] >= 1e-3 else 3)
        assert row["runs_in_all"] == (4 if row["name"] == "four" else 3)
    assert figure.get_supxlabel().startswith("median, quartiles over 3 to 4 seeds; dashed:")
    figure, _ = draw_against_loss([Group("", 3, curves[:3])], "", 1e-4)
    assert figure.get_supxlabel() == "median, quartiles over 3 seeds"


def test_bound_ends_where_determinant_changes_sign():
    """At depth 2 the entry levels off, below the bound; at depth 3 it follows the bound to the end."""
    follows, losses = theory_curve(), theory_curve().losses
    curves = {
        depth: Curve(follows.epochs, losses, values, (1.0, 1.0, 0.0), det_sign=-1)
        for depth, values in ((2, np.minimum(follows.values, 7)), (3, follows.values), (4, 0 * follows.values))
    }
    lines = [Group("a", depth, [curve] * seeds) for depth, curve in curves.items() for seeds in (1, 2)]
    figure, _ = draw_against_loss(lines, "", 1e-4, show_bound=True)
    grey = [[line for line in axes.lines if line.get_color() == "0.45"] for axes in figure.axes]
    assert [len(drawn) for drawn in grey] == [1, 1, 0]
    # At 7 = (1 − s)² / s, s is 0.113.
    assert grey[0][0].get_xdata()[-1] == pytest.approx(0.113**2 / 2, rel=0.1)
    assert grey[1][0].get_xdata()[-1] == pytest.approx(1e-4)
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert labels == [["a", "a", "lower bound while det < 0"]] * 2 + [["a", "a"]]


def test_markers_of_coinciding_curves_do_not_overlap():
    curve = theory_curve()
    apart = Curve(curve.epochs, curve.losses, curve.values / 3)
    figure = draw_curves(a=curve, b=curve, c=curve, d=apart)
    axes = figure.axes[0]
    markers = [line for line in axes.lines if line.get_marker() != "None"]
    places = [axes.transData.transform(line.get_xydata()) for line in markers]
    assert [len(of_line) for of_line in places] == [4, 4, 4, 4]
    together = np.concatenate(places)
    distances = np.linalg.norm(together[:, None] - together, axis=-1) + 100 * np.eye(len(together))
    assert distances.min() > 5
    # The curve that is apart has its last marker where the first has its own.
    assert markers[3].get_xdata()[-1] == markers[0].get_xdata()[-1]
    assert (markers[1].get_xdata() > markers[0].get_xdata()).all()
    widths = [collection.get_linewidth()[0] for collection in axes.collections]
    assert widths == sorted(set(widths), reverse=True)


def test_markers_are_inside_axes():
    """The loss falls from 0.5 to 1e-7 between two validations."""
    losses = np.array([1.0, 0.5, 1e-7])
    figure = draw_curves(a=Curve(np.arange(1, 4), losses, np.array([0.0, 1.0, 2.0])))
    assert all(len(line.get_xdata()) == 0 for line in figure.axes[0].lines if line.get_marker() != "None")


def test_effective_rank_is_drawn_as_excess_over_1_on_logarithmic_axis():
    curve = theory_curve()
    curve = Curve(curve.epochs, curve.losses, 1 + np.where(curve.losses > 1e-3, curve.losses, 0))
    figure, rows = draw_against_loss([Group("a", 3, [curve])], "", 1e-4, "e2e_effective_rank")
    axes = figure.axes[0]
    assert axes.get_ylabel() == "effective rank − 1"
    assert axes.get_yscale() == "symlog"
    assert rows[0]["value"] == pytest.approx(rows[0]["loss"])
    assert rows[-1]["value"] == 0
    bottom, top = axes.transAxes.inverted().transform(axes.transData.transform([(0.1, 0), (0.1, 1e-6)]))[:, 1]
    assert 0 < bottom < top - 0.05


@pytest.mark.parametrize("seeds", [1, 2])
def test_long_legends_are_inside_figure(seeds):
    """They are wrapped, and below the axes if they have many lines."""
    name = "lr 1.25e-3 init identity 1.25e-1, engine torch, validate_every 5000, completion_2x2_perturbed_w_-2_05_0"
    for count in (1, 9):
        lines = [Group(f"{name}, {k}", depth, [theory_curve(1000)] * seeds) for k in range(count) for depth in (2, 3)]
        figure, _ = draw_against_loss(lines, "", 1e-4)
        figure.draw_without_rendering()
        panels = figure.axes[:2]
        assert [axes.get_title() for axes in panels] == ["depth 2", "depth 3"]
        boxes = [axes.get_legend().get_window_extent() for axes in panels]
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
        assert boxes[0].x1 <= boxes[1].x0
        assert all(axes.bbox.height > 100 and axes.bbox.width > 150 for axes in panels)
        if count == 9:
            below = [axes.xaxis.get_tightbbox() for axes in panels]
            assert all(box.y1 <= labels.y0 for box, labels in zip(boxes, below, strict=True))
            assert all(box.y0 >= axes.get_tightbbox().y1 for axes in figure.axes[2:] for box in boxes)


def test_legend_does_not_overlap_curves():
    """Draws a curve that rises early and levels off in the upper left corner, where the legend is."""
    losses = np.geomspace(1, 5e-5, 200)
    curve = Curve(np.arange(1, 201), losses, np.minimum(5, 1 / losses - 1))
    figure = draw_curves(**{"a long name of a run": curve})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    box = axes.get_legend().get_window_extent()
    points = axes.transData.transform(np.concatenate(axes.collections[0].get_segments()))
    assert not box.count_contains(points)


def test_share_of_runs_on_the_curve():
    """A run leaves where its entry is not above the bound, and does not come back."""
    follows = theory_curve(2000, 9.9e-7)
    bound = bounds.unobserved_entry(follows.losses, 1, 1, 0)

    def curve(until=2000, back=2000, end=2000):
        values = np.where((np.arange(2000) >= until) & (np.arange(2000) < back), bound, follows.values)
        return Curve(follows.epochs[:end], follows.losses[:end], values[:end], (1, 1, 0))

    # The second run comes back; the third ends soon after it leaves; the last never leaves, and ends above 1e-4.
    curves = [curve(), curve(1200, 1210), curve(600, end=601), curve(end=1300)]
    groups = [Group("a", 3, curves), Group("b", 3, curves[:3]), Group("c", 3, curves[1:3])]
    figure, rows = draw_on_the_curve(groups, "title")
    of = {name: [row for row in rows if row["name"] == name] for name in "abc"}
    for name, count in (("a", 4), ("b", 3), ("c", 2)):
        losses, shares, runs = (np.array([row[column] for row in of[name]]) for column in ("loss", "share", "runs"))
        left = 1.0 * (losses < follows.losses[600]) + (losses < follows.losses[1200])
        np.testing.assert_allclose(shares, (count - left) / count)
        assert (losses[0], set(runs)) == (0.1, {count})
    assert 1e-2 in [row["loss"] for row in of["a"]]
    # No run is counted at a loss that it has not reached.
    ends = [of[name][-1]["loss"] for name in "abc"]
    assert ends == pytest.approx([follows.losses[1299], 1e-6, 1e-6], rel=0.13)
    assert ends[0] >= follows.losses[1299]
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "share of runs on the curve")
    assert axes.get_xlim() == pytest.approx((0.1, 1e-6))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a (4 runs)", "b (3 runs)", "c (2 runs)"]
    _, rows = draw_on_the_curve(groups, "", 1e-3)
    assert min(row["loss"] for row in rows) == 1e-3
    with pytest.raises(ValueError, match=r"no line has a loss below 0\.1"):
        draw_on_the_curve([Group("", 3, [curve(end=10)])], "")


def test_unusable_runs_are_skipped_with_reason(tmp_path):
    parameters = {"depth": 3, "lr": 1e-3, "init_alpha": 0.1, "weight_init_type": "identity"}
    status = {"status": {"finished": True}}
    written = {
        "good": {**parameters, **status},
        "original": {"depth": 3, "lr": 2e-3, "init_alpha": 0.1, "use_balanced_init": False, "random_seed": -1},
        "unfinished": {**parameters, "status": {"finished": False}},
        "damaged": {**parameters, **status, "lr": 5e-3},
        "never_finite": {**parameters, **status, "lr": 6e-3},
        "diverged": {**parameters, "status": {"finished": True, "stop_reason": "diverged"}},
        "wrong_type": {**parameters, "depth": "3"},
        "foreign": {"x": 1},
    }
    for name, content in written.items():
        checkpoint = tmp_path / name / "checkpoints/2020_epoch_9.pt"
        checkpoint.parent.mkdir(parents=True)
        (tmp_path / name / "run_params.json").write_text(json.dumps(content))
        values = [float("nan")] if name == "never_finite" else [1.0]
        evaluators = {"sse_loss_div_2": make_tracker([9], values)}, {"e2e_0_0_value": make_tracker([9], values)}
        torch.save(dict(zip(("train_evaluator", "val_evaluator"), evaluators, strict=True)), checkpoint)
    (tmp_path / "damaged/checkpoints/2020_epoch_9.pt").write_bytes(b"PK")
    lines, skipped = read_lines(tmp_path)
    names = ["lr 1e-3 init identity 1e-1", "lr 2e-3 factor init 1e-1"]
    assert [(line.name, len(line.values)) for line in lines] == [(name, 1) for name in names]
    reasons = dict(line.split(": ", 1) for line in skipped)
    assert reasons.keys() == written.keys() - {"good", "original"}
    assert "not finished" in reasons["unfinished"]
    assert "2020_epoch_9.pt: is not a torch.save file" in reasons["damaged"]
    assert reasons["never_finite"].endswith("2020_epoch_9.pt: diverged")
    assert reasons["diverged"] == "diverged"
    assert "depth in run_params.json is '3'" in reasons["wrong_type"]
    shutil.rmtree(tmp_path / "damaged")
    with pytest.raises(NotRecorded, match=r"2020_epoch_9\.pt: nope was not recorded; give one of sse"):
        read_lines(tmp_path, metric="nope")


def make_run_folder(path, **parameters):
    """Creates a run folder with a checkpoint and the given parameters."""
    checkpoint = path / "checkpoints/2020_epoch_9.pt"
    checkpoint.parent.mkdir(parents=True)
    evaluators = {"sse_loss_div_2": make_tracker([9], [1.0])}, {"e2e_0_0_value": make_tracker([9], [1.0])}
    torch.save(dict(zip(("train_evaluator", "val_evaluator"), evaluators, strict=True)), checkpoint)
    given = {"depth": 3, "lr": 1e-3, "init_alpha": 0.1, **parameters}
    (path / "run_params.json").write_text(json.dumps(given))


@pytest.mark.parametrize(
    "dataset, entry, corner, sign",
    [
        ("completion_2x2_w_1_1_0", (0, 0), (1, 1, 0), 1),
        ("completion_2x2_perturbed_w_-2_05_01", (0, 0), (-2, 0.5, 0.1), -1),
        ("completion_2x2_repositioned_w_1_0_1", (0, 1), (1, 1, 0), -1),
    ],
)
def test_sign_of_determinant_while_bounds_hold(tmp_path, dataset, entry, corner, sign):
    path = f"{ROOT}/data/dmf/{dataset}.pt"
    make_run_folder(tmp_path / "a", dataset_path=path, num_samples=3, unobserved_entry=entry)
    ((line,), _) = read_lines(tmp_path, metric="sse_loss_div_2", corner=True, entry=entry)
    assert line.values[0].corner == pytest.approx(corner)
    assert line.values[0].det_sign == sign


@pytest.mark.parametrize(
    "changed, wanted, error, message",
    [
        ({}, {"corner": True}, NoBound, "no run_params.json names them"),
        ({"dataset_path": "x" * 5000, "num_samples": 3}, {"corner": True}, NoBound, "cannot be read"),
        ({"dataset_path": "a\0b", "num_samples": 3}, {"corner": True}, NoBound, "cannot be read"),
        ({"dataset_path": "/dev/zero", "num_samples": 3}, {"corner": True}, NoBound, "is not a regular file"),
        ({"depth": -3}, {}, ValueError, "depth in run_params.json is -3"),
        ({}, {"entry": (5, 5)}, NotRecorded, "only e2e_0_0_value was recorded"),
    ],
)
def test_invalid_run_parameters_raise(tmp_path, changed, wanted, error, message):
    make_run_folder(tmp_path / "a", **changed)
    with pytest.raises(error, match=message):
        read_lines(tmp_path, **wanted)


@pytest.mark.parametrize(
    "changed", [{"depth": 10**6}, {"init_alpha": 1e300}, {"dataset_path": "a\0b"}, {"dataset_path": "/dev/zero"}]
)
def test_label_of_unknown_initialization(tmp_path, changed):
    make_run_folder(tmp_path / "a", **changed)
    ((line,), _) = read_lines(tmp_path)
    assert "factor init" in line.name


def test_label_has_standard_deviation_of_the_product(tmp_path):
    for name, width in (("a", 0), ("b", 8)):
        make_run_folder(tmp_path / name, dataset_path=str(MATRIX), depth=3, init_alpha=0.1, hidden_dim=width)
        ((line,), _) = read_lines(tmp_path / name)
        # d^((depth - 1) / 2) alpha^depth with inner dimension d
        assert f"init {'8e-3' if width else '2e-3'}" in line.name


def test_label_has_number_of_samples_unless_dataset_implies_it(tmp_path):
    for name, changed in {"a": {}, "b": {"dataset_path": "y.pt", "num_samples": 4}}.items():
        make_run_folder(tmp_path / name, **{"dataset_path": "x.pt", "num_samples": 3, **changed})
    lines, _ = read_lines(tmp_path)
    assert [line.name for line in lines] == ["x", "y"]
    make_run_folder(tmp_path / "c", dataset_path="x.pt", num_samples=2)
    lines, _ = read_lines(tmp_path)
    assert [line.name for line in lines] == ["x, num_samples 3", "y, num_samples 4", "x, num_samples 2"]


def test_line_of_seeds_without_points_is_in_the_legend():
    """No run of the first line has a loss below the largest one."""
    single = Curve(np.array([50]), np.array([0.9]), np.array([1.0]))
    figure, _ = draw_against_loss([Group("a", 3, [single, single]), Group("b", 3, [theory_curve()] * 2)], "", 1e-4)
    assert [text.get_text().splitlines()[0] for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_runs_with_different_flags_are_separate_lines(tmp_path):
    """Of runs with equal flags and seed, only the newest is used."""
    defaults = {"engine": "auto", "validate_every": 50, "lr": 1e-3}
    identity = {"run": defaults, "outputs": ["file_log"], "inputs": {}, "seed": 0}
    for number, changed in enumerate([{}, {"engine": "torch"}, {"validate_every": 7}, {"file_log": True}]):
        sweep = {"start_time": str(number), "experiment": 1}
        parameters = {"engine": "auto", "validate_every": 50, "random_seed": 0, "file_log": False, **changed}
        provenance = {"sweep": sweep, "identity": {**identity, "occurrence": 1}}
        make_run_folder(tmp_path / f"run{number}", **parameters, provenance=provenance, status={"finished": True})
    lines, skipped = read_lines(tmp_path)
    assert [line.name for line in lines] == [
        "engine auto, validate_every 50",
        "engine torch, validate_every 50",
        "engine auto, validate_every 7",
    ]
    assert skipped == ["run0: was run again, with the same seed"]
