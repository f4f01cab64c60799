"""Criteria that differentiate keep the feature maps of a few images at a time, and get the same scores."""

import pytest
import torch
from small_networks import IMAGE, Residual, pictures, prepared

from pruning import criteria
from pruning.criteria import CRITERIA, in_parts
from pruning.finding import find_groups

CASES = [("taylor", {}), ("ccp", {}), ("cpgmi", {}), ("cpgmi", {"estimate": "mine", "steps": 5})]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_scores_are_those_of_the_whole_batch(name, options, monkeypatch):
    model, (images, labels) = prepared(Residual()), pictures(20)
    groups = find_groups(model, IMAGE)
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append((len(inputs[0]), torch.is_grad_enabled())))

    def scores():
        sizes.clear()
        return CRITERIA.build(name, **options).rank(model, groups, [(images, labels)]).scores

    whole = scores()
    assert (20, True) in sizes
    monkeypatch.setattr(criteria, "ENTRIES_WITH_MAPS", 6 * images[0].numel())
    parted = scores()
    assert [size for size, with_maps in sizes if with_maps] == [6, 6, 6, 2]
    for group, found in parted.items():
        assert found.tolist() == pytest.approx(whole[group].tolist(), rel=1e-6, abs=1e-12)


def test_parts_are_the_images_in_order_and_never_empty():
    images, labels = torch.randn(5, 3, 700, 700), torch.arange(5)  # one alone is larger than the limit
    parts = list(in_parts([(images, labels)]))
    assert [len(part) for part, _ in parts] == [1] * 5
    assert torch.equal(torch.cat([part for part, _ in parts]), images)
    assert torch.equal(torch.cat([part for _, part in parts]), labels)
