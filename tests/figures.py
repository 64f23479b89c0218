"""Makes the pictures in example_plots/ again, with the commands of example_plots/README.md, and prints its numbers.

    python -m tests.figures [NAME ...]

Prints the time of each command and, for each kind of runs, percentiles of the final metrics, and the share on the
curve by loss. With names of plans, runs only the commands that name one of them.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from common.plotting.histories import RATIO_TO_BOUND, measure_matrix
from common.recorded_runs import compared, differing_names, final_metrics, newest_checkpoint, read_runs
from tests.conftest import ROOT
from tests.pages import commands

METRICS = "sse_loss_div_2", "e2e_effective_rank", "distance_from_rank_1", "reconstruction_error", "fit_epochs"
METRICS += "model_tensor_rank", "memorizer_reconstruction_error", "memorizer_tensor_rank"


def print_numbers(folder: Path) -> None:
    """Prints for each kind of runs in a folder their number, the shares that the page has, and the 5th, 25th, 50th,
    75th and 95th percentiles of final metrics; in folders of a map only those of the loss.
    """
    runs, _ = read_runs(folder)
    names, kinds = differing_names(runs), defaultdict(list)
    for run, values in zip(runs, compared(runs), strict=True):
        kinds[" ".join(f"{name} {values[name]}" for name in names)].append(run)
    for kind, members in kinds.items():
        ends = [final_metrics(run) for run in members]
        text = f"{kind}: {len(members)} runs"
        if folder.name.startswith(("leaving", "phase")):
            for loss in (1e-3, 1e-4, 3e-5, 1e-5) if newest_checkpoint(members[0].path) else (1e-4,):
                ratios = [measure_matrix(run, RATIO_TO_BOUND, at_loss=loss) for run in members]
                text += f", {sum(ratio is not None and ratio > 1 for ratio in ratios)} on the curve at {loss:g}"
        if folder.name.startswith("recovery"):
            text += f", {sum((end.get('reconstruction_error') or 1) < 0.01 for end in ends)} recovered"
        entry = "e2e_{}_{}_value".format(*(members[0].parameters.get("unobserved_entry") or (0, 0)))
        text += f", {sum((end.get('sse_loss_div_2') or 0) > 1e-4 for end in ends)} above loss 1e-4" * (entry in ends[0])
        print(text)
        for name in (entry, *METRICS) if len(kinds) < 50 else METRICS[:1]:
            if values := [abs(end[name]) for end in ends if end.get(name) is not None]:
                print(f"  {name:31}", *(f"{each:10.4g}" for each in np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))))


def main() -> None:
    names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)  # the recorded paths of datasets are relative
        Path("data").symlink_to(ROOT / "data")
        for command in commands(ROOT / "example_plots/README.md"):
            if names and not any(name in command for name in names):
                continue
            _, script, *flags = shlex.split(command)
            begin = time.perf_counter()
            environment = {**os.environ, "MPLBACKEND": "agg"}
            line = [sys.executable, str(ROOT / script), *flags]
            subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, check=True)
            print(f"{time.perf_counter() - begin:7.1f} s  {command}", flush=True)
            if "-plan" in flags:
                plan = flags[flags.index("-plan") + 1]
                print_numbers(Path("outputs") / script.partition("_")[0] / plan)
            for picture in Path("outputs/figures").glob("*.png"):
                shutil.copyfile(picture, ROOT / "example_plots" / picture.name)


if __name__ == "__main__":
    main()
