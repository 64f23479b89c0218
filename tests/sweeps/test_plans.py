import re

import pytest

from common.cli import UserError
from common.sweeps.plans import Plan, combinations, planned_jobs, plans_parser
from dmf_experiment_runner import add_flags
from tests.conftest import MATRIX, ROOT

BASE = {"dataset_path": str(MATRIX), "random_seed": 0, "epochs": 100}
DEFAULT = Plan("what is run without flags", [BASE, {**BASE, "random_seed": -1}], "-plot_title 'depth 3'")
PLANS = {"few": Plan("two", [BASE, {**BASE, "random_seed": 7}]), "more": Plan("three", [BASE], repetitions=3)}


def jobs(default=DEFAULT, plans=PLANS, **given):
    parser = plans_parser("", plans, add_flags)
    command, plans = parser.parse(parser.words(given)), {"": default, **plans}
    return planned_jobs(command, add_flags, plans, "outputs/x", "dmf_results_plotter.py", lambda _: "made")


def seeds(job):
    return [each["random_seed"] for each in job.experiments]


def test_repetitions_use_consecutive_seeds():
    (job,) = jobs(repetitions=3)
    assert seeds(job) == [0, 1, 2, -1, -1, -1]
    names = ["made_seed_0", "made_seed_1", "made_seed_2", "made", "made", "made"]
    assert [each["experiment_name"] for each in job.experiments] == names


def test_lists_of_the_original_code():
    (job,) = jobs(Plan("", [{**BASE, "experiment_name": ""}, {**BASE, "experiment_name": "given"}]))
    assert [each["experiment_name"] for each in job.experiments] == ["made", "given"]
    expected = "experiment 1 of the list: -experiment_random_seed 3: unknown flag; did you mean -random_seed?"
    with pytest.raises(UserError, match=re.escape(expected)):
        jobs(Plan("", [{**BASE, "experiment_random_seed": 3}]))


def test_random_seed_flag():
    assert [seeds(job) for job in jobs(plan="all", random_seed=100)] == [[100, 107], [100, 101, 102]]
    assert [seeds(job) for job in jobs(plan="all", random_seed=-1)] == [[-1, -1], [-1, -1, -1]]
    assert seeds(jobs(random_seed=5)[0]) == [5, 5]
    with pytest.raises(UserError, match="experiment 2 of the list of plan few: -random_seed 4294967302: must be"):
        jobs(plan="few", random_seed=2**32 - 1)


def test_output_folders_of_plans():
    def folders(**given):
        return [sorted({each["output_dir"] for each in job.experiments}) for job in jobs(**given)]

    assert folders() == [["outputs/dmf"]]
    assert folders(plan="few") == [["outputs/x/few"]]
    assert folders(plan="all") == [["outputs/x/few"], ["outputs/x/more"]]
    assert folders(plan="few", output_dir="mine") == [["mine"]]
    assert folders(plan="all", output_dir="mine") == [["mine/few"], ["mine/more"]]


def test_plot_command_is_quoted(monkeypatch):
    monkeypatch.chdir(ROOT)
    drawn = "-experiments_dir 'my runs/' -plot_title 'depth 3' -save_plot_to 'my runs.png'"
    assert jobs(output_dir="my runs/")[0].plot_command == f"python dmf_results_plotter.py {drawn}"


def test_labels_are_dropped_if_flags_change_the_plan():
    plan = Plan("", [{"depth": 2, "init_alpha": 0.5}], "-show_bound", "-plot_title two")
    for given, labelled in (
        ({}, True),
        ({"depth": 2, "lr": 1e-4, "random_seed": 1}, True),
        ({"depth": 3}, False),
        ({"init_alpha": 1.5}, False),
    ):
        ((_, _, command),) = [vars(job).values() for job in jobs(plan, **given)]
        assert "-show_bound" in command
        assert ("-plot_title two" in command) == labelled


def test_command_line_flags_override_list():
    listed = {**BASE, "lr": 0.1, "tracked_e2e_value_of": [[0, 0]], "plot_metrics": True}
    (job,) = jobs(Plan("", [listed]), lr=0.2, tracked_e2e_value_of=[[1, 1]], file_log=True)
    (parameters,) = job.experiments
    expected = {"lr": 0.2, "tracked_e2e_value_of": [[1, 1]], "plot_metrics": True, "file_log": True, "depth": 3}
    assert {name: parameters[name] for name in expected} == expected
    assert {"lr", "random_seed", "plot_metrics"} <= parameters.given
    assert not {"resume", "plan", "repetitions"} & parameters.values.keys()


@pytest.mark.parametrize(
    "experiments, message",
    [
        ([BASE, {**BASE, "intit_alpha": 1}], "experiment 2 of the list: -intit_alpha 1: .*did you mean -init_alpha"),
        ([{**BASE, "resume": True}], "experiment 1 of the list: -resume True: unknown flag"),
        ([BASE, "depth"], "the list is .*: must be a Plan of a list of dictionaries"),
    ],
)
def test_invalid_experiment_list_is_refused(experiments, message):
    with pytest.raises(UserError, match=message):
        jobs(Plan("", experiments))


def test_invalid_and_unknown_plans_are_refused():
    with pytest.raises(UserError, match="the list of plan wrong is "):
        jobs(plans={"wrong": [BASE]}, plan="wrong")
    with pytest.raises(UserError, match="-plan: invalid choice: 'none'"):
        jobs(plan="none")


def test_combinations_order():
    assert combinations({"a": 0}, {"b": [1, 2], "c": [3, 4]}) == [
        {"a": 0, "b": b, "c": c} for b in (1, 2) for c in (3, 4)
    ]
