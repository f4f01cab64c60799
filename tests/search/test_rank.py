"""Ranking by several criteria: what is made once, what is written, what is refused."""

import csv
import statistics

import matplotlib.image
import pytest
import tiny

from pruning import CRITERIA, NestedRanking, RankingError, evaluate, load_ranking, prune, recalibrate
from search import sensitivity
from search.prepare import prepare_unranked
from search.rank import rank

APOZ = [{"name": "apoz", "options": {"images": count}} for count in (20, 30)]
SEARCH = {"ranking_images": 30, "criterion": ["l1", *APOZ]}


@pytest.fixture
def made(monkeypatch):
    """Which criteria ranked, and how many batches of images networks saw for criteria that stream, in order."""
    calls = []
    for name in ("l1", "fpgm", "taylor"):
        criterion = CRITERIA.get(name)

        def noted(self, *args, _name=name, _rank=criterion.rank):
            calls.append(_name)
            return _rank(self, *args)

        monkeypatch.setattr(criterion, "rank", noted)
    observe = CRITERIA.get("apoz").rank.__globals__["observe"]

    def observed(model, groups, batches, requests):
        calls.append(f"pass for {len(requests)}")
        return observe(model, groups, batches, requests)

    monkeypatch.setitem(CRITERIA.get("apoz").rank.__globals__, "observe", observed)
    return calls


class Cuts(list):
    """To which widths networks were cut to be measured; an interruption comes after so many."""

    stop = None


@pytest.fixture
def cuts(monkeypatch):
    cuts, measure = Cuts(), sensitivity.measure_sensitivity

    def noted(model, groups, *args):
        for found in measure(model, groups, *args):
            if len(cuts) == cuts.stop:
                cuts.stop = None
                raise KeyboardInterrupt
            if found.width < groups[found.group].width:
                cuts.append({found.group: found.width})
            yield found

    monkeypatch.setattr(sensitivity, "measure_sensitivity", noted)
    return cuts


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tables_pictures_and_rankings_lie_in_a_folder_of_their_own(call, file, tmp_path):
    code, text, complaint = call("rank", file(search=SEARCH), "--criteria", "l1,fpgm,taylor", "--sensitivity")
    assert (code, complaint) == (0, "")
    folder = tmp_path / "sweeps" / "tiny-rank"
    names = {str(path.relative_to(folder)) for path in tiny.files(folder)}
    rankings = {f"rankings/{name}.safetensors" for name in ("l1", "fpgm", "taylor")}
    tables = {f"{name}.{kind}" for name in ("agreement", "sensitivity") for kind in ("csv", "png")}
    assert names == {"rankings", *rankings, *tables}
    for name in ("agreement", "sensitivity"):
        assert matplotlib.image.imread(folder / f"{name}.png").std() > 0.05
        assert f"written: {folder / f'{name}.png'}" in text.splitlines()
    agreement = rows(folder / "agreement.csv")
    lines = text.splitlines()
    for share, chance in (("30 %", 34), ("50 %", 50), ("70 %", 75)):
        heading = next(line for line in lines if line.startswith(f"in common at {share}"))
        assert heading.split("  ")[0] == f"in common at {share} (chance {chance} %)"
        assert heading.split()[-3:] == ["l1", "fpgm", "taylor"]
        of = [row for row in agreement if (row["first"], row["second"]) == ("l1", "fpgm")]
        of = [row for row in of if f"{100 * float(row['share']):g} %" == share]
        mean = statistics.fmean(float(row["overlap"]) for row in of)
        assert lines[lines.index(heading) + 1].split()[:2] == ["l1", f"{100 * mean:.0f}"]


def test_the_rankings_that_are_written_are_those_of_the_criteria(tmp_path):
    asked = tiny.experiment(tmp_path, search=SEARCH)
    ranked = rank(asked, tmp_path / "out")
    assert list(ranked.rankings) == ["l1", "apoz(images=20)", "apoz(images=30)"]
    inputs = prepare_unranked(asked)
    expected = CRITERIA.build("l1").rank(inputs.network(), inputs.searched)
    for name in inputs.searched:
        assert load_ranking(tmp_path / "out" / "rankings" / "l1.safetensors").keep(name, 3) == expected.keep(name, 3)
    assert (tmp_path / "out" / "rankings" / "apoz-images=20.safetensors").exists()


def test_what_streams_shares_one_pass_and_ranks_as_alone(tmp_path, made):
    asked = tiny.experiment(tmp_path / "together", search=SEARCH)
    said = []
    ranked = rank(asked, say=said.append)
    assert made == ["pass for 2", "l1"]
    assert "ranking channels by apoz, apoz in one pass" in said
    made.clear()
    alone = [rank(tiny.experiment(tmp_path / "alone", search=SEARCH | {"criterion": ["l1", spec]})) for spec in APOZ]
    assert made == ["l1", "pass for 1", "pass for 1"]
    for one, label in zip(alone, ("apoz(images=20)", "apoz(images=30)"), strict=True):
        for group, order in one.rankings["apoz"].orders.items():
            assert order.tolist() == ranked.rankings[label].orders[group].tolist()
            assert one.rankings["apoz"].scores[group].tolist() == ranked.rankings[label].scores[group].tolist()


def test_only_what_is_missing_is_made(tmp_path, made):
    asked = tiny.experiment(tmp_path, search=SEARCH)
    rank(asked, criteria="l1,fpgm")
    made.clear()
    said = []
    rank(asked, criteria="fpgm,l1,taylor", say=said.append)
    assert made == ["taylor"]
    assert {"  fpgm: known from before", "  l1: known from before"} <= set(said)
    assert any(line.startswith("  taylor: ") and line.endswith(" s") for line in said)


def test_a_second_run_computes_nothing_and_says_the_same(call, file, tmp_path, made, cuts):
    command = ("rank", file(search=SEARCH), "--widths", "50%,25%", "--sensitivity")
    _, first, _ = call(*command)
    before = {path: path.read_bytes() for path in (tmp_path / "sweeps" / "tiny-rank").glob("*.csv")}
    assert (len(made), len(cuts)) == (2, 4)
    code, second, complaint = call(*command)
    assert (code, complaint, len(made), len(cuts)) == (0, "", 2, 4)
    assert before == {path: path.read_bytes() for path in (tmp_path / "sweeps" / "tiny-rank").glob("*.csv")}
    assert first[first.index("\nin common") :] == second[second.index("\nin common") :]


def test_an_interruption_loses_nothing_that_was_made(call, file, tmp_path, made, cuts):
    experiment, cuts.stop = file(search=SEARCH), 3
    command = ("rank", experiment, "--criteria", "taylor,l1", "--widths", "50%,25%", "--sensitivity")
    code, _, complaint = call(*command)
    assert (code, complaint) == (130, "interrupted\n")
    assert made == ["l1", "taylor"]
    (path,) = (tmp_path / "sweeps" / "cache" / "sensitivity").iterdir()
    path.write_text(path.read_text() + '\n["second", 8, 0.')  # torn as well
    assert call(*command)[0] == 0
    assert made == ["l1", "taylor"]
    assert cuts == [{"first": 2}, {"first": 4}, {"second": 4}, {"second": 8}]
    assert call(*command)[0] == 0
    assert len(cuts) == 4  # what came behind the torn line is known


def test_a_files_neighbours_stay_and_its_own_are_replaced(tmp_path):
    asked, folder = tiny.experiment(tmp_path, search=SEARCH), tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "agreement.csv").write_text("old")
    rank(asked, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "agreement.csv").read_text().startswith("first,second,")


def test_one_group_at_a_time_is_cut_and_measured_as_by_hand(tmp_path):
    asked = tiny.experiment(tmp_path, search=SEARCH)
    ranked = rank(asked, tmp_path / "out", widths="25%,50%", sensitivity=True)
    inputs = prepare_unranked(asked)
    found = rows(tmp_path / "out" / "sensitivity.csv")
    assert [(row["group"], int(row["keep"])) for row in found] == [
        *(("first", width) for width in (2, 4, 8)),
        *(("second", width) for width in (4, 8, 16)),
    ]
    accuracies = set()
    for row in found:
        network = inputs.network()
        if row["keep"] != row["channels"]:
            widths = {row["group"]: int(row["keep"])}
            prune(network, widths, ranked.rankings["l1"], groups=inputs.groups, example_input=inputs.example)
            recalibrate(network, inputs.data.train, images=asked.recipe.recalibration_images, augment=True)
        accuracy = evaluate(network, inputs.data.val).accuracy
        accuracies.add(accuracy)
        assert float(row["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
        assert float(row["accuracy_change"]) == pytest.approx(accuracy - inputs.baseline.accuracy, abs=2e-6)
    assert len(accuracies) > 2


def test_another_share_measures_only_what_is_new(tmp_path, cuts):
    asked = tiny.experiment(tmp_path, search=SEARCH)
    rank(asked, widths="50%", sensitivity=True)
    cuts.clear()
    rank(asked, widths="25%,50%", sensitivity=True)
    assert cuts == [{"first": 2}, {"second": 4}]
    cuts.clear()
    rank(
        asked.model_copy(update={"recipe": asked.recipe.model_copy(update={"recalibration_images": 50})}), widths="50%"
    )
    assert cuts == []
    other = asked.recipe.model_copy(update={"recalibration_images": 50})
    rank(asked.model_copy(update={"recipe": other}), widths="50%", sensitivity=True)
    assert cuts == [{"first": 4}, {"second": 8}]


def test_one_criterion_is_enough_for_what_cuts_cost(call, file, tmp_path):
    code, text, _ = call("rank", file(), "--sensitivity", "--widths", "50%", "-o", tmp_path / "out")
    assert (code, "in common" in text) == (0, False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "rankings",
        "sensitivity.csv",
        "sensitivity.png",
    ]


def test_all_takes_those_that_can_rank_the_network_and_says_who_is_left_out(tmp_path, monkeypatch):
    def broken(self, *args):
        raise RankingError("criterion 'fpgm': no such layer")

    monkeypatch.setattr(CRITERIA.get("fpgm"), "rank", broken)
    monkeypatch.setattr(CRITERIA, "names", lambda: ("apoz", "bn_scale", "fpgm", "l1", "taylor"))
    asked = tiny.experiment(tmp_path, search=SEARCH | {"criterion": "taylor"})
    said = []
    ranked = rank(asked, criteria="all", say=said.append)
    assert list(ranked.rankings) == ["taylor", "apoz", "bn_scale", "l1"]
    assert "  fpgm is left out: criterion 'fpgm': no such layer" in said
    with pytest.raises(RankingError, match="no such layer"):
        rank(asked, criteria="l1,fpgm")


def test_a_fault_in_the_shared_pass_names_its_criterion_and_the_others_are_kept(tmp_path, monkeypatch, made):
    watcher = CRITERIA.get("apoz").watcher

    def broken(self, model, groups):
        if self.images == 30:
            raise RankingError("criterion 'apoz': not today")
        return watcher(self, model, groups)

    monkeypatch.setattr(CRITERIA.get("apoz"), "watcher", broken)
    asked = tiny.experiment(tmp_path, search=SEARCH)
    with pytest.raises(RankingError, match="not today"):
        rank(asked)
    assert made == ["l1", "pass for 1"]
    said = []
    monkeypatch.setattr(CRITERIA, "names", lambda: ("apoz",))
    assert len(rank(asked, criteria="all", say=said.append).rankings) == 2
    assert "  apoz(images=20): known from before" in said


def test_a_criterion_that_sees_the_losses_gets_the_last_that_the_experiment_lists(tmp_path):
    said = []
    search = {"ranking_images": 30, "groups": "inner", "criterion": ["l1", "ccp"], "auxiliary": [0, 1]}
    sections = {"model": "tiny:blocks", "baseline": {"epochs": 1}, "auxiliary": {"heads": {"epochs": 1}}}
    rank(tiny.experiment(tmp_path, search=search, **sections), say=said.append)
    assert "ranking channels by ccp, auxiliary losses at 3" in said
    assert not any(line.startswith("ranking channels by l1, ") for line in said)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--criteria", "l1,fpgn"], "unknown criterion 'fpgn'; did you mean 'fpgm'?"),
        (["--criteria", "l1"], "--criteria: expected at least two to compare, got l1; 'all' takes every one"),
        ([], "--criteria: expected at least two to compare, got l1"),
        (["--criteria", "l1,fpgm", "--widths", "half"], "--widths: expected a share between 0% and 100%"),
        (["--criteria", "l1,fpgm", "--widths", "30%,100%"], "such as 50%, got '100%'"),
        (["--criteria", "l1,fpgm", "-o", "tiny.yaml"], "tiny.yaml: expected a folder, got a file"),
        (["--criteria", "l1,fpgm", "--set", "search.groups=frist"], "unknown channel group 'frist'"),
    ],
)
def test_mistakes_are_one_line(refused, file, tmp_path, monkeypatch, arguments, reason):
    path = file()
    monkeypatch.chdir(tmp_path)
    assert reason in refused("rank", path, *arguments)


def test_a_ranking_in_memory_is_known_and_not_read(tmp_path, made):
    asked = tiny.experiment(tmp_path, search=SEARCH)
    ranked = rank(asked)
    assert all(isinstance(ranking, NestedRanking) for ranking in ranked.rankings.values())
    assert len(ranked.agreements) == 3 * 2
    assert [path.name for path in ranked.written] == ["rankings", "agreement.csv", "agreement.png"]
