"""What a sweep tries first."""

import pytest
import tiny
from optuna.trial import FixedTrial

from pruning import ALLOCATIONS, CriterionSpec, ModelSpec, PolicyError
from search.errors import ExperimentError
from search.inputs import ranking_key
from search.prepare import prepare, space_of
from search.rules import PAPER_RULES, rules_ahead, start_rules
from search.searcher import StudySearcher
from search.starts import PLACES, make_starts
from search.study import create_study

BUDGET = {"minimum": "30%", "maximum": "90%"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("starts")


@pytest.fixture(scope="module")
def made(folder):
    """Makes inputs and space of a search; rankings are kept in one folder."""

    def make(**search):
        asked = {"trials": 60, "criterion": ["l1", "fpgm"], "budget": BUDGET, "start": "papers", **search}
        inputs = prepare(tiny.experiment(folder, baseline={"epochs": 1}, search=asked))
        return inputs, space_of(inputs)

    return make


def test_the_papers_widths_come_first_at_budgets_all_over_the_range(made):
    inputs, space = made()
    starts = make_starts(inputs.experiment, space)
    low, high = space.shares
    shares = [low + part * (high - low) for part in (0.5, 1 / 6, 5 / 6)]
    sources = [start.source for start in starts]
    for share in shares:
        for name in ("uniform", "hsic_lasso", "joint_quadratic", "sensitivity"):
            assert sources.count(f"{name} at {share:.0%}") <= 1
    assert {source.split(" ")[0] for source in sources} >= {"uniform", "hsic_lasso", "sensitivity"}
    for start in starts:
        macs = inputs.cost.cost(start.widths).macs / inputs.cost.full.macs
        assert 0.2 < macs <= 0.9
    uniform = next(start for start in starts if start.source == f"uniform at {shares[0]:.0%}")
    target = round(shares[0] * inputs.cost.full.macs)
    assert uniform.widths == ALLOCATIONS.build("uniform").widths(inputs.groups, inputs.cost, target)


def test_answers_mean_the_widths_wherever_the_space_can_say_them(made):
    inputs, space = made()
    for start in make_starts(inputs.experiment, space):
        policy = space.suggest(FixedTrial(start.answers), start.widths)
        assert policy.widths == start.widths
        assert policy.criterion in inputs.experiment.search.criterion
        assert space.suggest(FixedTrial(start.answers)).widths == start.widths


def test_no_two_starts_are_the_same_and_each_criterion_is_seen(made):
    inputs, space = made()
    starts = make_starts(inputs.experiment, space)
    assert len({(str(start.widths), start.answers["criterion"]) for start in starts}) == len(starts)
    assert {start.answers["criterion"] for start in starts} == {"l1", "fpgm"}


@pytest.mark.parametrize(("trials", "most"), [(1, 1), (8, 2), (13, 3), (24, 6)])
def test_rules_take_at_most_a_quarter_of_the_trials(made, trials, most):
    inputs, space = made(trials=trials)
    assert len(make_starts(inputs.experiment, space)) == most


def test_rules_go_round_the_budgets_and_each_meets_each(made):
    inputs, space = made(trials=400)
    starts = [start.source.split(" at ") for start in make_starts(inputs.experiment, space)]
    low, high = space.shares
    places = [f"{low + place * (high - low):.0%}" for place in PLACES]
    rules = [rule.name for rule in PAPER_RULES]
    expected = [[rules[(place + turn) % 4], share] for turn in range(4) for place, share in enumerate(places)]
    assert starts == [start for start in expected if start in starts]  # some rules give the same widths
    assert starts[0] == ["uniform", places[0]]
    assert len(starts) > len(places)


def test_the_rankings_of_the_starts_are_made_before(made):
    inputs, _ = made()
    for rule in rules_ahead(inputs.experiment):
        built = ALLOCATIONS.build(rule.name, **rule.options)
        if built.ranked_by is not None:
            assert ranking_key(built.ranked_by) in inputs.rankings


def test_an_empty_list_starts_with_nothing(made):
    inputs, space = made(start=[])
    assert make_starts(inputs.experiment, space) == []
    assert list(inputs.rankings) == [ranking_key(CriterionSpec(name=name)) for name in ("l1", "fpgm")]


def test_rules_are_tried_where_rules_are_named_and_papers_only_where_widths_are_searched(made):
    inputs, space = made(start=["global", "papers"], allocation=["uniform", "global"])
    assert [rule.name for rule in start_rules(inputs.experiment)] == ["global"]
    assert {start.source.split(" ")[0] for start in make_starts(inputs.experiment, space)} == {"global"}


def test_a_rule_that_is_named_is_that_of_the_papers():
    search = {"criterion": "l1", "start": ["sensitivity", "papers", "joint_quadratic"]}
    rules = start_rules(tiny.experiment("x", search=search))
    assert sorted(map(str, rules)) == sorted(map(str, PAPER_RULES))


def test_dcp_adapt_joins_where_dcp_is_searched():
    search = {"criterion": ["l1", {"name": "dcp", "options": {"mode": "fast"}}], "start": "papers"}
    names = [rule.name for rule in start_rules(tiny.experiment("x", search=search))]
    assert names == ["uniform", "hsic_lasso", "joint_quadratic", "sensitivity", "adaptive"]


def test_dcp_adapts_widths_are_cut_by_dcp(made):
    inputs, space = made(
        criterion=["l1", {"name": "dcp", "options": {"mode": "fast"}}], start="papers", ranking_images=40
    )
    adaptive = [start for start in make_starts(inputs.experiment, space) if start.source.startswith("adaptive")]
    assert adaptive
    assert {start.answers["criterion"] for start in adaptive} == {"dcp"}


def test_policies_from_files_and_sweeps_are_tried(made, tmp_path):
    inputs, space = made()
    policy = space.policy_of({"first": 3, "second": 11}, CriterionSpec(name="fpgm"))
    (tmp_path / "mine.json").write_text(policy.to_json())
    earlier = inputs.experiment.model_copy(update={"name": "earlier"})
    create_study(earlier.folder, earlier)
    (earlier.folder / "experiment.yaml").write_text(earlier.to_yaml())
    searcher = StudySearcher(earlier.folder, earlier, space, inputs.baseline.to_dict())
    config = searcher.suggest("a")
    metrics = {"epoch": 2, "accuracy": 0.5, "loss": 1.0, "macs": 100, "params": 10, "seconds": 1.0}
    searcher.on_trial_complete("a", metrics)
    inputs, space = made(start=[str(tmp_path / "mine.json"), str(earlier.folder)])
    starts = make_starts(inputs.experiment, space)
    assert starts[0].source == "policy of mine.json"
    assert starts[0].widths == {"first": 3, "second": 11}
    assert starts[0].answers["criterion"] == "fpgm"
    assert starts[1].source == "policy of earlier, trial 0"
    assert space.suggest(FixedTrial(starts[1].answers)).widths == starts[1].widths
    assert f'"first":{starts[1].widths["first"]}' in config["policy"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"expected papers, adaptive, .*, a policy's file or a sweep's folder, got '.*p.json'"),
        ("{", r"/p.json: policy: Invalid JSON"),
        ("other", r"p.json: policy: made for a network with signature"),
    ],
)
def test_a_start_that_is_none_is_refused(made, tmp_path, content, reason):
    inputs, space = made(start=[])
    path = tmp_path / "p.json"
    if content == "other":
        policy = space.policy_of({"first": 3}, CriterionSpec(name="l1"))
        content = policy.model_copy(update={"network": "0" * 16, "model": ModelSpec(name="x")}).to_json()
    if content is not None:
        path.write_text(content)
    search = inputs.experiment.search.model_copy(update={"start": (str(path),)})
    with pytest.raises(ExperimentError, match=f"^search.start: .*{reason}"):
        make_starts(inputs.experiment.model_copy(update={"search": search}), space)


def test_a_rule_of_the_papers_that_fails_is_left_out_with_a_note_and_a_named_one_is_not(made, monkeypatch):
    inputs, space = made()

    def broken(*_):
        raise PolicyError("budget: nothing fits")

    monkeypatch.setattr(ALLOCATIONS.get("hsic_lasso"), "widths", broken)
    notes = []
    inputs, space = made()
    starts = make_starts(inputs.experiment, space, notes.append)
    assert len([note for note in notes if note.startswith("note: no start by hsic_lasso")]) == 1
    assert starts
    named = inputs.experiment.search.model_copy(update={"start": ("hsic_lasso",)})
    with pytest.raises(ExperimentError, match=r"^search.start: hsic_lasso: "):
        make_starts(inputs.experiment.model_copy(update={"search": named}), space)
