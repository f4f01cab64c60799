"""Each kind of fault once, in as few sweeps as that takes; `make chaos` has them all, and at random."""

import shutil
import signal

import faults
import pytest
from clocks import moved
from disks import disks

NO_ROOM = "No space left on device"


@pytest.mark.timeout(600)
def test_a_sweep_that_meets_one_fault_after_the_other_is_what_it_would_have_been(new_place, table, tmp_path):
    place = new_place(trained=False, tracking={"uri": "http://127.0.0.1:9"})  # where nobody answers

    def dies(stage, **more):
        place.fault(stage, who="driver", **more)
        assert place.run() == -signal.SIGKILL, place.err

    dies("search.prepare:train_baseline")
    for stage in (
        {"place": "search.trainable:received"},
        {"place": "pruning.steps:OneStep.__call__", "call": 9},
        {"place": "pathlib:Path.write_bytes", "how": "torn", "match": ".draft"},
        {"place": "ray.tune:report", "how": "after", "call": 2},
    ):
        place.fault(**stage)
    dies("search.watcher:Watcher.on_trial_complete", call=2)

    for path in [*(place.sweep / "snapshots").glob("*.pt"), *(place.experiment.storage / "cache/rankings").iterdir()]:
        faults.spoil(path, "a bit")
    faults.spoil(place.sweep / "study.journal", "zeros")
    faults.spoil(place.sweep / "mlflow-outbox.jsonl", "a torn line")
    faults.spoil(place.sweep / "shared.jsonl", "half a block")
    assert place.run() == 0, place.err
    assert not [stage for stage in place.waiting if stage["who"] == "driver"]
    assert "Connection refused" in place.out
    found = faults.compare(place, uri=f"sqlite:///{tmp_path / 'later.db'}")
    table.add("one after the other", "processes killed, files damaged, MLflow away", place.met + 4, found)


@pytest.mark.timeout(600)
def test_a_sweep_on_full_disks_beside_clocks_that_jump_is_what_it_would_have_been(new_place, table):
    place = new_place(tracking={"enabled": False})
    with disks() as disk:
        place.wrapped = disk.enter
        place.fault("search.driver:_fit", who="driver")
        assert place.run() == -signal.SIGKILL, place.err
        journal, small = place.sweep / "study.journal", place.folder / "small"
        for folder in (place.sweep / "snapshots", small):
            folder.mkdir()
        disk.mount(place.sweep / "snapshots", 64)
        disk.fill(place.sweep / "snapshots")
        disk.mount(small, 20)
        disk.lay(journal, small)
        assert place.run() == 2, place.err
        again = f"go on with: prunesearch resume '{place.sweep}'"
        assert place.err == f"error: {journal}: {NO_ROOM}; what has ended is kept; with room again {again}\n"
        disk.resize(small, 10_000)
        with moved(place):
            assert place.run() == 0, place.err
        assert f"they cannot write snapshots: {NO_ROOM} (" in place.out
        shutil.copy(disk.see(journal), journal)
    table.add("together", "disks full, clocks jump", 3, faults.compare(place, tracked=False))
