import numpy as np
import pytest

from common.metrics import theory
from common.plotting.against_loss import draw_against_loss, values_below
from common.plotting.histories import Curve
from common.plotting.runs import Group
from tests.plotting.folders import texts_of

FLAGS = {"y": [], "min_loss": 1e-4, "show_bound": False, "statistic": "median", "plot_title": None}


def draw(groups, *metric, **flags):
    return draw_against_loss(groups, {**FLAGS, "y": list(metric), **flags})


def draw_curves(**curves):
    return draw([Group(name, "depth 3", [curve]) for name, curve in curves.items()])[0]


def theory_curve(num_points=20_000, last=5e-5, scale=1.0, end=None):
    """Returns the first `end` points of a run on the curve |W_00| = 1 / √(2ℓ), times a number."""
    losses = np.geomspace(0.9, last, num_points)[:end]
    return Curve(np.arange(1, len(losses) + 1) * 50, losses, scale / np.sqrt(2 * losses), (1.0, 1.0, 0.0))


def with_values(curve, values):
    return Curve(curve.epochs, curve.losses, values, curve.corner)


def markers_of(axes):
    return [line for line in axes.lines if line.get_marker() != "None"]


def drawn_lines(axes, style):
    return [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata())]


def test_value_at_each_loss_is_that_of_the_first_validation_below():
    curve = Curve(np.array([1, 2, 3]), np.array([1.0, 0.1, 1e-2]), np.array([0.0, 2.0, 20.0]))
    stuck = Curve(np.array([1, 2]), np.array([1.0, 0.1]), np.array([0.0, 8.0]))
    losses, values = values_below([curve, stuck], 1.0, 0.02)
    assert (losses[0], losses[-1]) == (1, pytest.approx(0.02))
    np.testing.assert_array_equal(values[:, [0, -1]], [[2, 20], [8, np.nan]])


def test_figure_matches_paper():
    curves = {"a": theory_curve(), "b": theory_curve(10_000, 1e-3, 1 / 3)}
    figure = draw_curves(**curves)
    axes, bar = figure.axes
    assert figure.get_size_inches() == pytest.approx((3.1, 3.4))
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("loss", "|unobserved entry|", "depth 3")
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylim()[0]) == ("log", "linear", 0)
    assert axes.get_xlim() == pytest.approx((0.9, 1e-4))
    assert axes.get_ylim()[1] > 70
    assert texts_of(axes.get_legend()) == ["a", "b"]

    # The curves end after the first loss below 1e-4 and share one color scale.
    lines = axes.collections
    ends = [line.get_segments()[-1][-1][0] for line in lines]
    assert (0.99e-4 < ends[0] < 1e-4, ends[1]) == (True, pytest.approx(1e-3))
    assert len({line.norm for line in lines}) == 1
    assert (lines[0].norm.vmin, lines[0].norm.vmax) == (1, lines[0].get_array().max())
    light, dark = lines[0].cmap(0.0)[:3], lines[0].cmap(1.0)[:3]
    assert dark == (0, 0, 0)
    assert light[2] > light[0] > 0.5
    widths = [line.get_linewidth()[0] for line in lines]
    assert widths == sorted(set(widths), reverse=True)

    # The markers of the second curve are earlier, so that they do not overlap those of the first.
    first, second = markers_of(axes)
    losses = curves["a"].losses
    assert first.get_xdata().tolist() == [losses[losses < 1.3 * 10.0**-power][0] for power in (1, 2, 3, 4)]
    assert (second.get_xdata() > first.get_xdata()[: len(second.get_xdata())]).all()
    assert (first.get_marker(), second.get_marker()) == ("o", "v")
    assert first.get_color()[0] > second.get_color()[0]

    figure.draw_without_rendering()
    assert bar.get_xlabel() == "epochs"
    assert [label.get_text() for label in bar.get_xticklabels()] == ["1e0", "2.5e5", "5e5", "7.5e5"]
    with pytest.raises(ValueError, match=r"no loss is larger than 0\.9; give a smaller one"):
        draw([Group("", "", [theory_curve()])], min_loss=10.0)


def test_markers_of_coinciding_curves_do_not_overlap():
    axes = draw_curves(**dict.fromkeys("abcd", theory_curve())).axes[0]
    places = np.concatenate([axes.transData.transform(line.get_xydata()) for line in markers_of(axes)])
    assert len(places) == 16
    distances = np.linalg.norm(places[:, None] - places, axis=-1) + 100 * np.eye(len(places))
    assert distances.min() > 5


def test_markers_are_inside_axes():
    """The loss falls from 0.5 to 1e-7 between two validations."""
    axes = draw_curves(a=Curve(np.arange(1, 4), np.array([1.0, 0.5, 1e-7]), np.array([0.0, 1.0, 2.0]))).axes[0]
    assert [len(line.get_xdata()) for line in markers_of(axes)] == [0]


def test_effective_rank_is_drawn_as_excess_over_1_on_logarithmic_axis():
    curve = theory_curve()
    curve = with_values(curve, 1 + np.where(curve.losses > 1e-3, curve.losses, 0))
    figure, rows = draw([Group("a", "", [curve])], "e2e_effective_rank", show_bound=True)
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("effective rank − 1", "symlog")
    assert (rows[0]["value"], rows[-1]["value"]) == (pytest.approx(rows[0]["loss"]), 0)
    bottom, top = axes.transAxes.inverted().transform(axes.transData.transform([(0.1, 0), (0.1, 1e-6)]))[:, 1]
    assert 0 < bottom < top - 0.05
    (dashes,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(dashes.get_ydata(), theory.effective_rank(dashes.get_xdata(), 1, 1, 0) - 1)
    assert dashes.get_color() == "0.45"
    assert texts_of(axes.get_legend()) == ["a", "upper bound, det sign kept"]


def test_median_is_solid_only_where_all_runs_are_there():
    curves = [theory_curve(last=last) for last in (5e-5, 5e-5, 5e-5, 1e-3)]
    figure, rows = draw([Group("four", "", curves), Group("three", "", curves[:3])])
    (axes,) = figure.axes
    solid, (dashed,) = drawn_lines(axes, "-"), drawn_lines(axes, "--")
    assert [line.get_xdata()[-1] for line in solid] == pytest.approx([1e-3, 1e-4], rel=0.06)
    assert dashed.get_xdata()[[0, -1]].tolist() == [solid[0].get_xdata()[-1], pytest.approx(1e-4)]
    assert dashed.get_color() == solid[0].get_color()
    assert texts_of(axes.get_legend()) == ["four\n(3 of 4 runs reach 1e-4)", "three"]
    bands = [band for band in axes.collections if len(band.get_paths())]
    assert bands[0].get_alpha() > 2 * bands[1].get_alpha()
    assert bands[1].get_datalim(axes.transData).xmax == solid[0].get_xdata()[-1]
    for row in rows:
        assert row["runs"] == (4 if row["name"] == "four" and row["loss"] >= 1e-3 else 3)
        assert row["runs_in_all"] == (4 if row["name"] == "four" else 3)
    caption = "median, quartiles over 3 to 4 seeds; dashed: over those that reach the loss"
    assert figure.get_supxlabel().replace("\n", " ") == caption
    figure, _ = draw([Group("", "", curves[:3])], statistic="mean")
    assert figure.get_supxlabel() == "mean, 95% confidence interval over 3 seeds"


def test_bound_ends_where_determinant_changes_sign():
    """At depth 2 the entry levels off, below the bound; at depth 3 it follows the bound to the end. Each panel has its
    own scale.
    """
    follows = theory_curve()
    curves = {2: with_values(follows, np.minimum(follows.values, 7)), 3: follows, 4: theory_curve(scale=0)}
    lines = [Group("a", f"depth {depth}", [curve] * seeds) for depth, curve in curves.items() for seeds in (1, 2)]
    figure, rows = draw(lines, show_bound=True, plot_title="title")
    grey = [[line for line in axes.lines if line.get_color() == "0.45"] for axes in figure.axes]
    assert [len(drawn) for drawn in grey] == [1, 1, 0]
    # At 7 = (1 − s)² / s, s is 0.113.
    assert grey[0][0].get_xdata()[-1] == pytest.approx(0.113**2 / 2, rel=0.1)
    assert grey[1][0].get_xdata()[-1] == pytest.approx(1e-4)
    labels = [texts_of(axes.get_legend()) for axes in figure.axes]
    assert labels == [["a", "a", "lower bound, det sign kept"]] * 2 + [["a", "a"]]
    assert figure.axes[0].get_ylim()[1] < 15 < figure.axes[1].get_ylim()[1]
    assert [axes.get_title() for axes in figure.axes] == ["depth 2", "depth 3", "depth 4"]
    assert (figure.get_suptitle(), {row["panel"] for row in rows}) == ("title", {"depth 2", "depth 3", "depth 4"})


@pytest.mark.parametrize("seeds", [1, 2])
def test_long_legends_are_inside_figure(seeds):
    """They are wrapped, and below the axes if they have many lines."""
    name = "lr 1.25e-3 init identity 1.25e-1, engine torch, validate_every 5000, completion_2x2_perturbed_w_-2_05_0"
    for count in (1, 9):
        panels = ("depth 2", "depth 3")
        lines = [Group(f"{name}, {k}", panel, [theory_curve(1000)] * seeds) for k in range(count) for panel in panels]
        figure, _ = draw(lines)
        figure.draw_without_rendering()
        panels = figure.axes[:2]
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
    figure = draw_curves(**{"a long name of a run": Curve(np.arange(1, 201), losses, np.minimum(5, 1 / losses - 1))})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    points = axes.transData.transform(np.concatenate(axes.collections[0].get_segments()))
    assert not axes.get_legend().get_window_extent().count_contains(points)


def test_line_of_seeds_without_points_is_in_the_legend():
    """No run of the first line has a loss below the largest one."""
    single = Curve(np.array([50]), np.array([0.9]), np.array([1.0]))
    figure, _ = draw([Group("a", "", [single, single]), Group("b", "", [theory_curve()] * 2)])
    assert [text.splitlines()[0] for text in texts_of(figure.axes[0].get_legend())] == ["a", "b"]


def test_share_of_runs_on_the_curve():
    """A run leaves where its entry is not above the bound, and does not come back."""
    follows = theory_curve(2000, 9.9e-7)

    def curve(until=2000, back=2000, end=2000):
        whole = theory_curve(2000, 9.9e-7, end=end)
        off = (np.arange(end) >= until) & (np.arange(end) < back)
        return with_values(whole, np.where(off, theory.unobserved_entry(whole.losses, 1, 1, 0), whole.values))

    # The second run comes back; the third ends soon after it leaves; the last never leaves, and ends above 1e-4.
    curves = [curve(), curve(1200, 1210), curve(600, end=601), curve(end=1300)]
    groups = [Group("a", "depth 3", curves), Group("b", "depth 3", curves[:3]), Group("c", "depth 3", curves[1:3])]
    figure, rows = draw(groups, "on_the_curve", min_loss=None)
    of = {name: [row for row in rows if row["name"] == name] for name in "abc"}
    for name, count in (("a", 4), ("b", 3), ("c", 2)):
        losses, shares, runs = (np.array([row[column] for row in of[name]]) for column in ("loss", "share", "runs"))
        left = 1.0 * (losses < follows.losses[600]) + (losses < follows.losses[1200])
        np.testing.assert_allclose(shares, (count - left) / count)
        assert (losses[0], set(runs)) == (0.1, {count})
    # No run is counted at a loss that it has not reached.
    ends = [of[name][-1]["loss"] for name in "abc"]
    assert ends == pytest.approx([follows.losses[1299], 1e-6, 1e-6], rel=0.13)
    assert ends[0] >= follows.losses[1299]
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_ylabel(), axes.get_title()) == ("log", "share of runs on the curve", "depth 3")
    assert axes.get_xlim() == pytest.approx((0.1, 1e-6))
    assert texts_of(axes.get_legend()) == ["a (4 runs)", "b (3 runs)", "c (2 runs)"]
    assert min(row["loss"] for row in draw(groups, "on_the_curve", min_loss=1e-3)[1]) == 1e-3
    with pytest.raises(ValueError, match=r"no line has a loss below 0\.1"):
        draw([Group("", "", [curve(end=10)])], "on_the_curve", min_loss=None)
