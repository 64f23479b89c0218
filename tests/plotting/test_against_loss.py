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


def theory_curve(num_points=20_000, last=5e-5, scale=1.0, end=None):
    """Returns the first `end` points of a run on the curve |W_00| = 1 / √(2ℓ), times a number."""
    losses = np.geomspace(0.9, last, num_points)[:end]
    return Curve(np.arange(1, len(losses) + 1) * 50, losses, scale / np.sqrt(2 * losses), (1.0, 1.0, 0.0))


def with_values(curve, values):
    return Curve(curve.epochs, curve.losses, values, curve.corner)


def test_value_at_each_loss_is_that_of_the_first_validation_below():
    curve = Curve(np.array([1, 2, 3]), np.array([1.0, 0.1, 1e-2]), np.array([0.0, 2.0, 20.0]))
    stuck = Curve(np.array([1, 2]), np.array([1.0, 0.1]), np.array([0.0, 8.0]))
    losses, values = values_below([curve, stuck], 1.0, 0.02)
    assert (losses[0], losses[-1]) == (1, pytest.approx(0.02))
    np.testing.assert_array_equal(values[:, [0, -1]], [[2, 20], [8, np.nan]])


def test_figure_of_single_runs():
    curves = {"a": theory_curve(), "b": theory_curve(10_000, 1e-3, 1 / 3)}
    figure, _ = draw([Group(name, "depth 3", [curve]) for name, curve in curves.items()])
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("loss", "|unobserved entry|", "depth 3")
    assert (axes.get_xscale(), axes.get_yscale(), bar.get_xlabel()) == ("log", "linear", "epochs")
    assert axes.get_xlim() == pytest.approx((0.9, 1e-4))
    assert texts_of(axes.get_legend()) == ["a", "b"]
    assert tuple(figure.get_size_inches()) == (3.1, 3.4)
    assert axes.get_ylim()[0] == 0
    assert axes.collections[0].cmap(1.0) == (0, 0, 0, 1)
    # A marker in each decade, below 1.3e-1, 1.3e-2, …; those of the second curve are shifted.
    markers = {line.get_marker(): line.get_xdata() for line in axes.lines if line.get_marker() != "None"}
    assert {marker: len(losses) for marker, losses in markers.items()} == {"o": 4, "v": 3}
    np.testing.assert_allclose(markers["o"], [1.3e-1, 1.3e-2, 1.3e-3, 1.3e-4], rtol=0.01)
    np.testing.assert_allclose(markers["v"], [1.82e-1, 1.82e-2, 1.82e-3], rtol=0.01)
    # The curves end after the first loss below 1e-4 and share one color scale.
    lines = axes.collections
    ends = [line.get_segments()[-1][-1][0] for line in lines]
    assert (0.99e-4 < ends[0] < 1e-4, ends[1]) == (True, pytest.approx(1e-3))
    assert len({line.norm for line in lines}) == 1
    assert (lines[0].norm.vmin, lines[0].norm.vmax) == (1, lines[0].get_array().max())
    with pytest.raises(ValueError, match=r"no loss is larger than 0\.9; give a smaller one"):
        draw([Group("", "", [theory_curve()])], min_loss=10.0)


def test_effective_rank_is_drawn_as_excess_over_1_on_logarithmic_axis():
    curve = theory_curve()
    curve = with_values(curve, 1 + np.where(curve.losses > 1e-3, curve.losses, 0))
    figure, rows = draw([Group("a", "", [curve])], "e2e_effective_rank", show_bound=True)
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("effective rank − 1", "symlog")
    assert (rows[0]["value"], rows[-1]["value"]) == (pytest.approx(rows[0]["loss"]), 0)
    (dashes,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(dashes.get_ydata(), theory.effective_rank(dashes.get_xdata(), 1, 1, 0) - 1)
    assert texts_of(axes.get_legend()) == ["a", "upper bound, det sign kept"]


def test_median_is_solid_only_where_all_runs_are_there():
    curves = [theory_curve(last=last) for last in (5e-5, 5e-5, 5e-5, 1e-3)]
    figure, rows = draw([Group("four", "", curves), Group("three", "", curves[:3])])
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    solid, (dashed,) = ([line for line in drawn if line.get_linestyle() == style] for style in ("-", "--"))
    assert [line.get_xdata()[-1] for line in solid] == pytest.approx([1e-3, 1e-4], rel=0.06)
    assert dashed.get_xdata()[[0, -1]].tolist() == [solid[0].get_xdata()[-1], pytest.approx(1e-4)]
    assert texts_of(axes.get_legend()) == ["four\n(3 of 4 runs reach 1e-4)", "three"]
    for row in rows:
        assert row["runs"] == (4 if row["name"] == "four" and row["loss"] >= 1e-3 else 3)
        assert row["runs_in_all"] == (4 if row["name"] == "four" else 3)
    caption = "median, quartiles over 3 to 4 seeds; dashed: over those that reach the loss"
    assert figure.get_supxlabel().replace("\n", " ") == caption
    without_points = Curve(np.array([50]), np.array([0.9]), np.array([1.0]))
    figure, _ = draw([Group("a", "", [without_points] * 3), Group("b", "", curves[:3])], statistic="mean")
    assert [text.splitlines()[0] for text in texts_of(figure.axes[0].get_legend())] == ["a", "b"]
    assert "mean, 95% confidence interval over 3 seeds" in figure.get_supxlabel().replace("\n", " ")


def test_bound_ends_where_determinant_changes_sign():
    """At depth 2 the entry levels off, below the bound; at depth 3 it follows the bound to the end."""
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
    assert [axes.get_title() for axes in figure.axes] == ["depth 2", "depth 3", "depth 4"]
    assert (figure.get_suptitle(), {row["panel"] for row in rows}) == ("title", {"depth 2", "depth 3", "depth 4"})


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
    assert axes.get_ylabel() == "share of runs on the curve"
    assert texts_of(axes.get_legend()) == ["a (4 runs)", "b (3 runs)", "c (2 runs)"]
    assert min(row["loss"] for row in draw(groups, "on_the_curve", min_loss=1e-3)[1]) == 1e-3
    with pytest.raises(ValueError, match=r"no line has a loss below 0\.1"):
        draw([Group("", "", [curve(end=10)])], "on_the_curve", min_loss=None)
