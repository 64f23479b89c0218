"""Checks the pages of the documentation: their links, and all of their commands."""

import importlib.util
import re
import shlex
import shutil

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.pages import PAGES, commands
from tests.test_plans import FIGURES
from tests.test_scripts import assert_success

page_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
# Instead of the numbers in the commands, so that they take a second each.
FEWER = {
    "dmf_experiment_runner.py": "-epochs 500",
    "dmf_multiple_experiments_runner.py": "-epochs 500 -repetitions 1",
    "tc_experiment_runner.py": "-epochs 200",
    "tc_multiple_experiments_runner.py": "-epochs 200 -repetitions 1 -num_samples 100 -tensor_rank_tol 1",
}


def anchors(path):
    """Returns the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page_of
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        path = page.parent / path if path else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@page_of
def test_commands(page, run_main, tmp_path, no_plots_of_runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.parent.name != "data":  # which makes the files that are there
        shutil.copytree(ROOT / "data", tmp_path / "data")
    np.savetxt(tmp_path / "my_matrix.csv", np.ones((30, 20)), delimiter=",")
    np.save(tmp_path / "my_tensor.npy", np.ones((12, 10, 8)))
    # tests/test_plans.py runs the plans of the paper's figures.
    names = "|".join(name for plans in FIGURES.values() for name in plans)
    elsewhere = re.compile(rf"(-plan |-experiments_dir outputs/\w+/)({names})( |$)")
    for command in commands(page):
        words = shlex.split(command)
        if elsewhere.search(command):
            continue
        if words[0] in ("torchrun", "srun"):
            script = re.search(r"(\w+\.py)( -[^']*)", command)
            words = ["python", script[1], *script[2].split()]
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), command
        elif words[:2] == ["python", "-c"]:
            exec(words[2])
        elif words[0] == "python":
            _, script, *flags = words
            longer = ["-epochs", 4000] if {"-plan", "leaving_the_curve"} <= {*flags} else []  # to a loss of 0.1
            assert_success(run_main(script, *flags, *FEWER.get(script, "").split(), *longer))
        else:
            assert words[:2] == ["pip", "install"], command


def test_shipped_datasets_are_those_of_the_commands(run_main, tmp_path, monkeypatch):
    """Equal in every number, whatever the version of PyTorch writes around them."""
    monkeypatch.chdir(tmp_path)
    for command in commands(ROOT / "data/README.md"):
        _, script, *flags = shlex.split(command)
        if script == "-c":
            exec(flags[0])
        elif "generator" in script and "-output_dir" not in flags:
            assert_success(run_main(script, *flags))
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("data/*/*.pt"))
    assert made == sorted(path.relative_to(ROOT) for path in ROOT.glob("data/*/*.pt"))
    for path in made:
        ours, shipped = (torch.load(root / path, weights_only=True) for root in (tmp_path, ROOT))
        torch.testing.assert_close(ours, shipped, rtol=0, atol=0, equal_nan=True, msg=str(path))
