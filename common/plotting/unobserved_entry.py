"""The paper's figure of matrix completion: |unobserved entry| against the loss (Razin & Cohen 2020, Figure 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from common.cli import UserError, flag_error
from common.plotting.figures import MARKERS
from common.plotting.thinning import visible_points
from common.tensor_files import load_dictionary
from common.training.history import series_of_evaluator

_COLOURS = LinearSegmentedColormap.from_list("iterations", ["#a9d6f5", "#2f7fc1", "#123a75", "#000000"])
# A marker is drawn where the loss first comes within this factor of a power of ten.
_MARKER_FACTOR = 1.3


@dataclass(frozen=True)
class Curve:
    """One experiment's way: |unobserved entry| and loss (n,) after `iterations` (n,) gradient steps."""

    name: str
    iterations: np.ndarray
    losses: np.ndarray
    entries: np.ndarray

    def down_to(self, min_loss: float) -> "Curve":
        """The curve, cut after its first loss below `min_loss`."""
        below = np.flatnonzero(self.losses < min_loss)
        end = below[0] + 1 if len(below) else len(self.losses)
        return Curve(self.name, self.iterations[:end], self.losses[:end], self.entries[:end])


def load_curve(path: str, name: str) -> Curve:
    """The curve of a checkpoint file, of this project or of the original code. Loss and entry are paired by epoch.

    Raises UserError, naming -experiments_checkpoint_paths, where there is none in the file.
    """
    flag = "experiments_checkpoint_paths"
    content = load_dictionary(path, flag)
    try:
        loss = series_of_evaluator({"": content["train_evaluator"]["sse_loss_div_2"]}, np.dtype(np.float64))[""]
        validation = content["val_evaluator"]
        if "e2e_0_0_value" not in validation:
            raise flag_error(
                flag, path, "did not track the unobserved entry; give a run with -tracked_e2e_value_of 0 0"
            )
        entry = series_of_evaluator({"": validation["e2e_0_0_value"]}, np.dtype(np.float64))[""]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise flag_error(flag, path, f"is no checkpoint of a matrix factorization ({error!r}); give one") from None
    epochs, at_loss, at_entry = np.intersect1d(loss.epochs, entry.epochs, return_indices=True)
    losses, entries = loss.values[at_loss], np.abs(entry.values[at_entry])
    usable = np.isfinite(losses) & np.isfinite(entries) & (losses > 0)
    if not usable.any():
        raise flag_error(flag, path, "has no epoch with both loss and unobserved entry; give one that has")
    return Curve(name, epochs[usable] + 1, losses[usable], entries[usable])


def draw_unobserved_entry(curves: Sequence[Curve], title: str, min_loss: float) -> Figure:
    """Draws the curves down to `min_loss`, coloured by iteration on one scale.

    Raises UserError where all of them begin below `min_loss`.
    """
    curves = [curve.down_to(min_loss) for curve in curves]
    largest = max(curve.losses.max() for curve in curves)
    if largest <= min_loss:
        raise UserError(f"-min_loss {min_loss:g}: no loss is larger than {largest:g}; give a smaller one")
    scale = Normalize(1, max(2, *(curve.iterations[-1] for curve in curves)))
    figure, axes = plt.subplots(figsize=(3.1, 3.4), layout="constrained")
    handles = []
    greys = plt.get_cmap("Greys")(np.linspace(0.3, 0.85, len(curves)))
    for index, (curve, grey) in enumerate(zip(curves, greys, strict=True)):
        shown = visible_points(np.log10(curve.losses), curve.entries)
        points = np.column_stack([curve.losses, curve.entries])[shown]
        segments = np.stack([points[:-1], points[1:]], axis=1)
        lines = LineCollection(segments, cmap=_COLOURS, norm=scale, linewidths=1.6, capstyle="round", zorder=2)
        lines.set_array(curve.iterations[shown][1:])
        axes.add_collection(lines)
        marked = _marked(curve, min_loss)
        (markers,) = axes.plot(
            curve.losses[marked],
            curve.entries[marked],
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            color=grey,
            markersize=5.5,
            label=curve.name,
            zorder=3,
            clip_on=False,
        )
        handles.append(markers)
    axes.set_xscale("log")
    axes.set_xlim(largest, min_loss)
    axes.set_ylim(0, 1.05 * max(curve.entries.max() for curve in curves))
    axes.set_xlabel("loss")
    axes.set_ylabel("|unobserved entry|")
    axes.set_title(title)
    # Given both, matplotlib shows names that begin with an underscore, too.
    axes.legend(
        handles, [curve.name for curve in curves], loc="upper left", fontsize="small", handletextpad=0.2, borderpad=0.3
    )
    bar = figure.colorbar(
        ScalarMappable(scale, _COLOURS), ax=axes, orientation="horizontal", label="iterations", aspect=30
    )
    ticks = np.linspace(scale.vmin, scale.vmax, 4)
    bar.set_ticks(ticks, labels=[_short(tick) for tick in ticks])
    return figure


def _marked(curve: Curve, min_loss: float) -> list[int]:
    """Where the loss first comes below 1.3 · 10⁻ʲ, for j = 1, 2, … while 10⁻ʲ ≥ min_loss."""
    marked = []
    power = 1
    # min_loss is 1e-4, for example, which 10 ** -4 only approximates.
    while 10.0**-power >= min_loss * (1 - 1e-9):
        below = np.flatnonzero(curve.losses < _MARKER_FACTOR * 10.0**-power)
        marked.extend(below[:1])
        power += 1
    return marked


def _short(number: float) -> str:
    """3300000 as 3.3e6."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
