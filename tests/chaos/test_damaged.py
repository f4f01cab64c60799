"""Files that crashes and disks have damaged: made again, mended, or told in one line."""

import re
import shutil
import signal
from dataclasses import replace

import faults
import pytest

from pruning import load_ranking

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

ROUNDS = {
    "torn": ("torn", "torn", "a torn line"),
    "other bytes": ("random bytes", "random bytes", "zeros"),
    "hardly": ("a bit", "a bit", "half a block"),
    "another's": ("of another policy", "of another shape", "a torn line"),
}
TAILS = ("study.journal", "mlflow-outbox.jsonl", "shared.jsonl")


@pytest.fixture(scope="module")
def halfway(new_place):
    """A sweep whose process was killed while trials ran, with snapshots of them."""
    place = new_place()
    place.fault("search.watcher:Watcher.on_trial_result", who="driver", call=8)
    assert place.run() == -signal.SIGKILL, place.err
    assert list((place.sweep / "snapshots").glob("*.pt"))
    return place


@pytest.fixture
def copied(halfway, tmp_path):
    """The same in a folder of its own."""
    folder = tmp_path / "a copy"
    shutil.copytree(halfway.experiment.storage, folder / "storage")
    return replace(
        halfway, folder=folder, experiment=halfway.experiment.model_copy(update={"storage": folder / "storage"})
    )


@pytest.mark.parametrize("how", ROUNDS)
def test_damaged_files_are_as_none_and_damaged_tails_are_dropped(copied, kept, how, rng):
    of_snapshots, of_cache, of_tails = ROUNDS[how]
    snapshots = list((copied.sweep / "snapshots").glob("*.pt"))
    rankings = sorted((copied.experiment.storage / "cache" / "rankings").iterdir())
    spoil_snapshots(snapshots, of_snapshots, rng)
    spoil_rankings(rankings, of_cache, rng)
    for name in TAILS:
        faults.spoil(copied.sweep / name, of_tails, seed=rng.random())
    assert copied.run("resume", copied.sweep, "--plain") == 0, copied.err
    kept(copied, "a snapshot is damaged", of_snapshots, len(snapshots))
    kept(copied, "a file of the cache is damaged", of_cache, len(rankings))
    kept(copied, "the end of journal, outbox and counts is damaged", of_tails, len(TAILS))
    (made,) = re.findall(r"shared work: (\d+) rankings made", copied.out)  # before, too, as far as the counts say
    assert int(made) >= len(rankings)


def spoil_snapshots(paths, how, rng):
    written = [path.read_bytes() for path in paths]
    for path, others in zip(paths, [*written[1:], written[0]], strict=True):
        if how == "of another policy":
            path.write_bytes(others)
        else:
            faults.spoil(path, how, seed=rng.random())


def spoil_rankings(paths, how, rng):
    for path in paths:
        if how == "of another shape":
            ranking = load_ranking(path)
            orders = {group: order[order < 4] for group, order in ranking.orders.items()}
            scores = {group: score[:4] for group, score in ranking.scores.items()}
            type(ranking)(ranking.criterion, orders, scores).save(path)
        else:
            faults.spoil(path, how, seed=rng.random())


def test_a_journal_that_is_damaged_in_the_middle_is_told_in_one_line(copied):
    journal = copied.sweep / "study.journal"
    content = bytearray(journal.read_bytes())
    middle = content.index(b"\n", len(content) // 2) + 1
    content[middle : middle + 8] = bytes(8)
    journal.write_bytes(content)
    assert copied.run("resume", copied.sweep, "--plain") == 2
    assert copied.err.splitlines() == [copied.complaint]
    line = bytes(content[:middle]).count(b"\n") + 1
    assert f"study.journal: line {line}: expected JSON" in copied.complaint
