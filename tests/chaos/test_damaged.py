"""Files that crashes and disks have damaged: made again, mended, or told in one line."""

import signal

import faults
import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

HALFWAY = {"place": "search.watcher:Watcher.on_trial_result", "who": "driver", "call": 8}


@pytest.fixture
def halfway(new_place):
    """A sweep whose process was killed while trials ran, with snapshots of them."""
    place = new_place()
    place.fault(**HALFWAY)
    assert place.run() == -signal.SIGKILL, place.err
    assert list((place.sweep / "snapshots").glob("*.pt"))
    return place


def goes_on(place, kept, what, how, times):
    assert place.run() == 0, place.err
    kept(place, f"{what} is damaged", how, times)


@pytest.mark.parametrize("how", ["torn", "random bytes", "a bit", "of another policy"])
def test_a_damaged_snapshot_is_as_none(halfway, kept, how):
    snapshots = list((halfway.sweep / "snapshots").glob("*.pt"))
    if how == "of another policy":
        written = [path.read_bytes() for path in snapshots]
        for path, others in zip(snapshots, [*written[1:], written[0]], strict=True):
            path.write_bytes(others)
    else:
        for number, path in enumerate(snapshots):
            faults.spoil(path, how, seed=number)
    goes_on(halfway, kept, "a snapshot", how, len(snapshots))


@pytest.mark.parametrize("how", ["torn", "random bytes", "a bit", "of another shape"])
def test_a_damaged_file_of_the_cache_is_made_again(halfway, kept, how, tmp_path):
    from pruning import load_ranking

    rankings = sorted((halfway.experiment.storage / "cache" / "rankings").iterdir())
    assert len(rankings) == 3
    for number, path in enumerate(rankings):
        if how == "of another shape":
            ranking = load_ranking(path)
            orders = {group: order[order < 4] for group, order in ranking.orders.items()}
            scores = {group: score[:4] for group, score in ranking.scores.items()}
            type(ranking)(ranking.criterion, orders, scores).save(path)
        else:
            faults.spoil(path, how, seed=number)
    goes_on(halfway, kept, "a file of the cache", how, len(rankings))
    assert "3 rankings made" in halfway.out or "6 rankings made" in halfway.out


@pytest.mark.parametrize("name", ["study.journal", "mlflow-outbox.jsonl", "shared.jsonl"])
@pytest.mark.parametrize("how", ["a torn line", "zeros", "half a block"])
def test_a_damaged_tail_is_dropped(halfway, kept, name, how, rng):
    faults.spoil(halfway.sweep / name, how, seed=rng.random())
    goes_on(halfway, kept, f"the end of {name}", how, 1)


def test_a_journal_that_is_damaged_in_the_middle_is_told_in_one_line(halfway):
    journal = halfway.sweep / "study.journal"
    content = bytearray(journal.read_bytes())
    middle = content.index(b"\n", len(content) // 2) + 1
    content[middle : middle + 8] = bytes(8)
    journal.write_bytes(content)
    assert halfway.run() == 2
    assert halfway.err.splitlines() == [halfway.complaint]
    line = bytes(content[:middle]).count(b"\n") + 1
    assert f"study.journal: line {line}: expected JSON" in halfway.complaint
