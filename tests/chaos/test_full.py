"""Disks that are full: what can be done without is gone without, and told; the rest waits for room."""

import signal

import faults
import pytest
from disks import disks
from faults import LONG
from processes import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

NO_ROOM = "No space left on device"


@pytest.fixture
def disk():
    with disks() as made:
        yield made


@pytest.fixture
def launched(new_place, disk):
    """A sweep with a folder, but no trial yet; its processes see the disks."""
    place = new_place()
    place.wrapped = disk.enter
    place.fault("search.driver:_fit", who="driver")
    assert place.run() == -signal.SIGKILL, place.err
    return place


def notes(place):
    return [line for line in place.out.splitlines() if line.startswith("note: ")]


def lay_on_full(place, disk, name, spare):
    """Lay one of the sweep's files on a disk with so many KiB to spare; return the disk."""
    folder, file = place.folder / f"small {name}", place.sweep / name
    folder.mkdir()
    if name != "study.journal":  # the last page has no room either
        file.write_bytes(file.read_bytes().ljust(-(-file.stat().st_size // 4096) * 4096, b"\n"))
    disk.mount(folder, (file.stat().st_size + 4095) // 4096 * 4 + spare)
    disk.lay(file, folder)
    return folder


def test_without_room_for_what_can_be_gone_without_trials_finish_and_the_user_is_told_once(launched, disk, kept):
    (launched.sweep / "snapshots").mkdir()
    disk.mount(launched.sweep / "snapshots", 64)
    disk.fill(launched.sweep / "snapshots")
    disk.fill(lay_on_full(launched, disk, "shared.jsonl", 4))
    lay_on_full(launched, disk, "mlflow-outbox.jsonl", 8)
    assert launched.run() == 0, launched.err
    told = "trials start afresh where they are interrupted, for they cannot write snapshots"
    assert notes(launched) == [
        f"note: {told}: {NO_ROOM} (6 of 6 trials)",
        f"note: shared.jsonl lacks some of what was made or found: {NO_ROOM}",
    ]
    assert f"{NO_ROOM}; some entries are missing, which a sync adds; " in launched.out
    outbox = launched.sweep / "mlflow-outbox.jsonl"
    outbox.write_bytes(disk.see(outbox).read_bytes())
    kept(launched, "a disk is full", "that of snapshots, counts and MLflow's outbox", 3)


def test_without_room_in_the_cache_trials_finish_and_the_user_is_told_once(new_place, disk, kept):
    place = new_place()
    place.wrapped = disk.enter
    cache = place.experiment.storage / "cache"
    cache.mkdir()
    disk.mount(cache, 64)
    disk.fill(cache)
    assert place.run() == 0, place.err
    assert notes(place) == [f"note: the cache does not keep what is made: {NO_ROOM}"]
    kept(place, "a disk is full", "that of the cache", 1)


@pytest.mark.parametrize("spare", [4, 16])
def test_a_journal_without_room_ends_the_sweep_in_one_line_and_resume_goes_on(launched, disk, kept, spare):
    folder = lay_on_full(launched, disk, "study.journal", spare)
    assert launched.run() == 2, launched.out
    journal = launched.sweep / "study.journal"
    again = f"go on with: prunesearch resume '{launched.sweep}'"
    assert launched.complaint == f"error: {journal}: {NO_ROOM}; what has ended is kept; with room again {again}"
    assert launched.err.splitlines() == [launched.complaint]
    disk.resize(folder, 10_000)
    assert launched.run("resume", launched.sweep, "--plain") == 0, launched.err
    journal.write_bytes(disk.see(journal).read_bytes())
    kept(launched, "a disk is full", "that of the journal", 1)


@pytest.mark.parametrize("run", range(2))
def test_a_disk_that_is_full_for_everything_ends_the_sweep_and_resume_goes_on(
    new_place, disk, kept, rng, tmp_path, run
):
    place = new_place(**LONG)
    place.wrapped = disk.enter
    storage, size = place.experiment.storage, rng.randrange(60, 300)
    disk.mount(storage, 10_000)
    disk.do("cp", "-r", place.undisturbed.experiment.storage / "baselines", storage / "baselines")
    used = sum(path.stat().st_size for path in disk.see(storage).rglob("*"))
    disk.resize(storage, used // 1024 + size)
    code, ends = place.run(), 0
    while code != 0 and ends < 20:
        ends += 1
        assert code == 2, place.err
        assert NO_ROOM in place.complaint
        disk.resize(storage, used // 1024 + size + 200 * ends)
        code = place.run()
    assert code == 0, place.err
    disk.do("cp", "-r", storage / "tiny", tmp_path / "found")
    kept(place, "a disk is full", "that of the whole storage, at random moments", ends, sweep=tmp_path / "found")


def test_without_room_for_tunes_own_files_the_sweep_ends_and_resume_goes_on(new_place, disk, kept):
    place = new_place(**LONG)
    place.wrapped = disk.enter
    driver = place.start("run", place.file, "--resume", "--plain")
    try:
        wait_for(lambda: "] trial " in place.out)
        disk.mount(place.sweep / "tune-1", 64)
        disk.fill(place.sweep / "tune-1")
        code = driver.wait(300)
    finally:
        faults.end(driver)
    assert code in (0, 2), place.err
    if code == 2:
        assert NO_ROOM in place.complaint
        assert place.run() == 0, place.err
    kept(place, "a disk is full", "that of Tune's own files", 1)
