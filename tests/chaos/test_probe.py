import time
import faults

def test_probe(undisturbed, place, kept):
    t=time.time()
    for stage, options in {"search.trainable:received": {}, "search.sharing:_rank": {}, "search.trial:prune": {"how":"after"}, "pruning.steps:OneStep.__call__": {"call": 8}, "pathlib:Path.write_bytes": {"how":"torn","match":".draft"}, "ray.tune:report": {"how":"after", "call":2}}.items():
        place.fault(stage, **options)
    assert place.run() == 0, place.err
    print(place.out)
    print(time.time()-t)
    assert not place.waiting
    kept(place, "worker", "stage", place.met)
