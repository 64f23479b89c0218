import pytest

from common.cli import UserError, check_parameters
from common.experiments.plans import Plan, plan_flags, planned_jobs, plans_help
from dmf_experiment_runner import FLAGS
from tests.conftest import ROOT

BASE = {"dataset_path": str(ROOT / "data/dmf/completion_2x2_w_1_1_0.pt"), "random_seed": 0, "epochs": 100}
DEFAULT = Plan("what is run without flags", [BASE, {**BASE, "random_seed": -1}], "-plot_title 'depth 3'")
PLANS = {"few": Plan("two", [BASE, {**BASE, "random_seed": 7}]), "more": Plan("three", [BASE], repetitions=3)}


def jobs(default=DEFAULT, **given):
    given = check_parameters(plan_flags(FLAGS, PLANS), given)
    return planned_jobs(FLAGS, default, PLANS, given, "outputs/x", "dmf_results_plotter.py", lambda parameters: "made")


def seeds(job):
    return [each["random_seed"] for each in job.experiments]


def test_repetitions_count_their_seeds_up_from_the_base():
    (job,) = jobs(lr=0.5, repetitions=3)
    assert seeds(job) == [0, 1, 2, -1, -1, -1]
    assert all((each["lr"], each["experiment_name"]) == (0.5, "made") for each in job.experiments)


def test_the_seed_flag_shifts_all_seeds_or_draws_fresh_ones():
    assert [seeds(job) for job in jobs(plan="all", random_seed=100)] == [[100, 107], [100, 101, 102]]
    assert [seeds(job) for job in jobs(plan="all", random_seed=-1)] == [[-1, -1], [-1, -1, -1]]
    assert seeds(jobs(random_seed=5)[0]) == [5, 5]
    with pytest.raises(UserError, match="experiment 2 of the list of plan few: -random_seed 4294967302: must be"):
        jobs(plan="few", random_seed=2**32 - 1)


def test_each_plan_has_its_own_folder():
    def folders(**given):
        return [sorted({each["output_dir"] for each in job.experiments}) for job in jobs(**given)]

    assert folders() == [["outputs/dmf"]]
    assert folders(plan="few") == [["outputs/x/few"]]
    assert folders(plan="all") == [["outputs/x/few"], ["outputs/x/more"]]
    assert folders(plan="few", output_dir="mine") == [["mine"]]
    assert folders(plan="all", output_dir="mine") == [["mine/few"], ["mine/more"]]


def test_the_command_that_draws_can_be_pasted(monkeypatch):
    monkeypatch.chdir(ROOT)
    drawn = "-experiments_dir 'my runs/' -plot_title 'depth 3' -save_plot_to 'my runs.png'"
    assert jobs(output_dir="my runs/")[0].plot_command == f"python dmf_results_plotter.py {drawn}"


def test_mistakes_in_a_list_are_refused_with_their_place():
    unknown = "experiment 2 of the list: unknown parameter 'intit_alpha'.*'init_alpha'"
    for wrong, expected in [
        ([BASE, {**BASE, "intit_alpha": 1}], unknown),
        ([BASE, "depth"], "experiment 2 of the list: 'depth': must be a dictionary"),
        ([], "the list is empty"),
    ]:
        with pytest.raises(UserError, match=expected):
            jobs(Plan("", wrong))
    with pytest.raises(UserError, match="-repetitions 0: must be"):
        jobs(Plan("", [BASE], repetitions=0))


@pytest.mark.parametrize(
    "plan, message",
    [
        (Plan("a", 3), "plan wrong: its experiments are 3; must be a list"),
        (Plan("a", [BASE], "-plot_title 'oops"), "plan wrong: its plot is .* must be as typed in a shell"),
    ],
)
def test_mistakes_in_a_plan_are_refused_with_its_name(plan, message):
    plans = {"wrong": plan}
    given = check_parameters(plan_flags(FLAGS, plans), {"plan": "wrong"})
    with pytest.raises(UserError, match=message):
        planned_jobs(FLAGS, DEFAULT, plans, given, "outputs/x", "dmf_results_plotter.py", lambda parameters: "made")


def test_what_is_no_plan_is_refused_with_its_name():
    with pytest.raises(UserError, match=r"plan wrong: is a list; must be Plan"):
        plans_help({"wrong": [BASE]})
