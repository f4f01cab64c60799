"""Rankings and heads are made once for each key, by whoever asks first, and shared."""

import threading
from dataclasses import replace

import pytest
import tiny
import torch

from pruning import CRITERIA, AuxiliaryPlacement, CriterionSpec, GreedyRanking, hash_weights
from search import heads
from search.heads import with_heads
from search.prepare import prepare
from search.rankings import rank_all, ranked_network, ranking_for

L1, CCP, DCP = (CriterionSpec(name=name) for name in ("l1", "ccp", "dcp"))
ONE, TWO = (AuxiliaryPlacement(kind="explicit", positions=places) for places in ((2,), (1, 3)))


def experiment(folder, **sections):
    search = {"groups": "inner", "ranking_images": 30, "criterion": ["l1", "ccp"], **sections.pop("search", {})}
    auxiliary = {"heads": {"epochs": 1}, **sections.pop("auxiliary", {})}
    return tiny.experiment(
        folder, model="tiny:blocks", baseline={"epochs": 1}, search=search, auxiliary=auxiliary, **sections
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return prepare(experiment(tmp_path_factory.mktemp("shared")))


@pytest.fixture
def fresh(inputs, tmp_path):
    """Return inputs of the same baseline with an empty cache, as another experiment asks."""

    def make(**sections):
        return replace(inputs, experiment=experiment(tmp_path, **sections), rankings={}, blocks=BLOCKS)

    return make


BLOCKS = tuple(f"blocks.{number}" for number in range(4))


@pytest.fixture
def made(monkeypatch):
    """What was trained and ranked, in order."""
    calls = []
    for name in ("l1", "ccp"):
        criterion = CRITERIA.get(name)

        def rank(self, *args, _name=name, _rank=criterion.rank):
            calls.append(_name)
            return _rank(self, *args)

        monkeypatch.setattr(criterion, "rank", rank)
    train = heads.train_heads

    def noted(model, auxiliary, *args, **options):
        calls.append(f"heads {auxiliary.placement}")
        return train(model, auxiliary, *args, **options)

    monkeypatch.setattr(heads, "train_heads", noted)
    return calls


def same(first, second):
    return all(
        first.keep(f"blocks.{block}.conv1", width) == second.keep(f"blocks.{block}.conv1", width)
        for block in range(4)
        for width in range(1, 7)
    )


def test_what_does_not_see_the_losses_is_ranked_once_for_all_placements(fresh, made):
    found = rank_all(fresh(search={"auxiliary": [0, 1, 2], "allocation": "global"}))
    assert made.count("l1") == 1
    assert made.count("ccp") == 3
    assert len(found) == 4
    assert [call for call in made if "heads" in call] == ["heads 3", "heads 2, 3"]


def test_what_sees_the_losses_waits_for_a_trial_unless_the_widths_follow_from_it(fresh, made):
    inputs = fresh(search={"auxiliary": [0, 1, 2], "allocation": ["searched", "uniform"]})
    assert len(rank_all(inputs)) == 2
    assert made == ["l1", "ccp"]
    ranking_for(inputs, CCP, ONE)
    assert made == ["l1", "ccp", "heads 2", "ccp"]


def test_heads_and_rankings_of_a_placement_are_made_once(fresh, made):
    inputs = fresh()
    one = ranking_for(inputs, CCP, TWO)
    again = ranking_for(inputs, CCP, TWO)
    with_heads(inputs, TWO)
    assert made == ["heads 1, 3", "ccp"]
    assert same(one, again)


def test_the_weight_of_a_loss_changes_the_ranking_but_not_the_heads(fresh, made):
    inputs = fresh()
    heavy = TWO.model_copy(update={"weight": 20.0})
    light, other = ranking_for(inputs, CCP, TWO), ranking_for(inputs, CCP, heavy)
    assert made == ["heads 1, 3", "ccp", "ccp"]
    assert not torch.equal(light.quadratic["blocks.0.conv1"], other.quadratic["blocks.0.conv1"])


def test_heads_come_back_from_the_cache_as_they_were_trained(fresh):
    inputs = fresh()
    network, trained = with_heads(inputs, TWO)
    again, read = with_heads(inputs, TWO)
    assert hash_weights(trained.heads.state_dict()) == hash_weights(read.heads.state_dict())
    assert hash_weights(network.state_dict()) == hash_weights(again.state_dict()) == hash_weights(inputs.weights)
    untrained = fresh(auxiliary={"heads": {"epochs": 0}})
    assert hash_weights(with_heads(untrained, TWO)[1].heads.state_dict()) != hash_weights(read.heads.state_dict())


def test_who_asks_for_a_ranking_that_is_being_made_waits_for_it(fresh, made, monkeypatch):
    inputs, found, started = fresh(), [], threading.Barrier(3)

    def ask():
        started.wait()
        found.append(ranking_for(inputs, CCP, ONE))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["heads 2", "ccp"]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@pytest.mark.parametrize("folder", ["rankings", "auxiliary"])
def test_a_damaged_file_is_made_again(fresh, made, folder):
    inputs = fresh()
    whole = ranking_for(inputs, CCP, ONE)
    (path,) = (inputs.experiment.storage / "cache" / folder).iterdir()
    path.write_bytes(path.read_bytes()[:100])
    made.clear()
    again = ranking_for(inputs, CCP, ONE)
    with_heads(inputs, ONE)
    assert made == {"rankings": ["ccp"], "auxiliary": ["heads 2"]}[folder]
    assert same(whole, again)


def test_the_joint_schedule_ranks_a_network_that_was_fine_tuned_with_its_losses(fresh, made):
    inputs = fresh(auxiliary={"schedule": "joint", "fine_tuning": {"epochs": 1, "learning_rate": 0.1}})
    network, _ = with_heads(inputs, ONE)
    again, _ = with_heads(inputs, ONE)
    other, _ = with_heads(inputs, TWO)
    hashes = [hash_weights(found.state_dict()) for found in (network, again, other)]
    assert hashes[0] == hashes[1]
    assert len({*hashes, hash_weights(inputs.weights)}) == 3
    assert made == ["heads 2", "heads 1, 3"]
    rank_all(replace(inputs, experiment=inputs.experiment))
    expected = CRITERIA.build("l1").rank(network, inputs.searched)
    assert same(ranking_for(inputs, L1, ONE), expected)
    assert hash_weights(ranked_network(inputs, L1, ONE).state_dict()) == hashes[0]
    assert hash_weights(ranked_network(inputs, L1, None).state_dict()) == hash_weights(inputs.weights)


def test_the_stagewise_schedule_ranks_and_trains_by_turns(fresh):
    inputs = fresh(auxiliary={"schedule": "stagewise", "fine_tuning": {"epochs": 1, "learning_rate": 0.05}})
    said = []
    ranking = ranking_for(inputs, DCP, TWO, said.append)
    assert isinstance(ranking, GreedyRanking)
    assert set(ranking.base) == set(inputs.weights)
    assert hash_weights(ranking.base) != hash_weights(inputs.weights)
    assert sum("epoch 1" in line for line in said) >= 3  # two heads and the end
    assert same(ranking, ranking_for(inputs, DCP, TWO))
    plain = fresh()
    assert not ranking_for(plain, DCP, TWO).base
