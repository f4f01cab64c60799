"""torch's own attention: whole heads go, and channels in and out; then it does what masking did."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import distance, half, random_ranking, randomise

from pruning.cost import CostModel, count_cost, count_memory
from pruning.errors import SurgeryError
from pruning.finding import find_groups
from pruning.layers import PrunedAttention
from pruning.models import build_model
from pruning.policy import ModelSpec
from pruning.surgery import prune

PLACES = torch.randn(2, 5, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))


class Transformer(nn.Module):
    """Attention and a feed-forward layer around a stream of 12 channels."""

    def __init__(self, *, need_weights: bool = False, **options: object) -> None:
        super().__init__()
        self.options = {"batch_first": True, **options}
        self.need_weights = need_weights
        self.embed, self.norm = nn.Linear(6, 12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 4, **self.options)
        self.hidden, self.out, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x) if self.options["batch_first"] else self.norm(x).transpose(0, 1)
        y = self.attention(y, y, y, need_weights=self.need_weights)[0]
        x = x + (y if self.options["batch_first"] else y.transpose(0, 1))
        return self.head((x + self.out(F.gelu(self.hidden(x)))).mean(1))


def transformer(**options: object) -> Transformer:
    torch.manual_seed(0)
    return randomise(Transformer(**options)).double().eval()


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": False}], ids=str)
def test_heads_and_channels_go(options: dict[str, object]) -> None:
    network = transformer(**options)
    groups = find_groups(network, PLACES)
    assert groups.widths == {"embed": 12, "attention": 4, "hidden": 20}
    costs, ranking, widths = CostModel(network, groups, PLACES), random_ranking(groups), half(groups)
    prune(network, widths, ranking, groups=groups, example_input=PLACES)
    assert isinstance(network.attention, PrunedAttention)
    assert (network.attention.embed_dim, network.attention.num_heads, network.attention.head_dim) == (6, 2, 3)
    assert count_cost(network, PLACES) == costs.cost(widths)
    assert count_memory(network, PLACES) == costs.memory(widths)
    network.train()(PLACES).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_removing_heads_is_zeroing_what_reads_them() -> None:
    network = transformer()
    groups = find_groups(network, PLACES)
    expected = copy.deepcopy(network)
    with torch.no_grad():
        expected.attention.out_proj.weight[:, 3:6] = 0  # the second head of four, three channels deep
        expected.attention.out_proj.weight[:, 9:] = 0
    prune(network, {"attention": 2}, Keeping((0, 2)), groups=groups, example_input=PLACES)
    assert distance(network(PLACES), expected(PLACES)) < 1e-12


class Keeping:
    """A ranking that keeps what it is told."""

    def __init__(self, kept: tuple[int, ...]) -> None:
        self.kept = kept

    def keep(self, group: str, count: int) -> tuple[int, ...]:
        return self.kept


def test_a_cut_network_can_be_cut_again_saved_and_exported() -> None:
    network = transformer()
    for _ in range(2):
        groups = find_groups(network, PLACES)
        prune(network, half(groups), random_ranking(groups), groups=groups, example_input=PLACES)
    assert (network.attention.num_heads, network.attention.embed_dim) == (1, 3)
    program = torch.export.export(network, (PLACES,))
    assert distance(program.module()(PLACES), network(PLACES)) < 1e-12
    torch.save(network, file := io.BytesIO())
    file.seek(0)
    assert distance(torch.load(file, weights_only=False)(PLACES), network(PLACES)) == 0


def test_weights_that_are_asked_for_pin_the_heads() -> None:
    groups = find_groups(transformer(need_weights=True), PLACES)
    assert set(groups.widths) == {"embed", "hidden"}
    assert "need_weights" in {pin.layer: pin.reason for pin in groups.pinned}["attention"]


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 12, "vdim": 7}], ids=str)
def test_rarer_forms_are_pinned(options: dict[str, object]) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Linear(6, 12), nn.MultiheadAttention(12, 4, batch_first=True, **options)
            self.short = nn.Linear(6, 7)

        def forward(self, x: Tensor) -> Tensor:
            y = self.embed(x)
            return self.attention(y, y, self.short(x) if "vdim" in options else y, need_weights=False)[0]

    groups = find_groups(Other(), PLACES)
    assert not groups
    assert "'MultiheadAttention' cannot be followed" in {pin.layer: pin.reason for pin in groups.pinned}["embed"]


def test_a_failed_cut_gives_back_torchs_own_attention() -> None:
    network = transformer()
    groups, before = find_groups(network, PLACES), dict(vars(network.attention))
    network.register_forward_hook(lambda net, _, output: output + (net.attention.num_heads < 4))
    with pytest.raises(SurgeryError, match="differs from the masked one"):
        prune(network, half(groups), random_ranking(groups), groups=groups, example_input=PLACES)
    assert type(network.attention) is nn.MultiheadAttention
    assert vars(network.attention) == before


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("masks", ["none", "bool", "float", "each head"])
def test_uncut_it_is_torchs_own(batch_first: bool, need_weights: bool, average: bool, masks: str) -> None:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(12, 4, batch_first=batch_first).double().eval()
    other = copy.deepcopy(own)
    PrunedAttention.convert(other)
    query, key = (torch.randn(2, places, 12, dtype=torch.double) for places in (5, 7))
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.7
    mask[:, 0] = False
    given = {
        "none": {},
        "bool": {"attn_mask": mask, "key_padding_mask": padding},
        "float": {"attn_mask": mask.double()},
        "each head": {"attn_mask": mask.expand(8, 5, 7), "key_padding_mask": padding},
    }[masks]
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    answers = [
        attention(query, key, key, need_weights=need_weights, average_attn_weights=average, **given)
        for attention in (own, other)
    ]
    for expected, found in zip(*answers, strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or (expected.shape == found.shape and distance(found, expected) < 1e-12)


def test_one_sequence_without_a_batch_axis() -> None:
    own = nn.MultiheadAttention(12, 4).double().eval()
    other = copy.deepcopy(own)
    PrunedAttention.convert(other)
    x = torch.randn(5, 12, dtype=torch.double)
    for expected, found in zip(own(x, x, x), other(x, x, x), strict=True):
        assert expected.shape == found.shape
        assert distance(found, expected) < 1e-12


def test_half_of_a_vision_transformer_goes() -> None:
    torch.manual_seed(0)
    network = randomise(build_model(ModelSpec(name="vit_b_16", options={"image_size": 32}))).eval()
    images = torch.randn(2, 3, 32, 32)
    groups = find_groups(network, images)
    assert len(groups) == 25  # of each of 12 layers the heads and the hidden channels; the stream
    before = count_cost(network, images)
    foretold = CostModel(network, groups, images).cost(half(groups))
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=images)
    assert count_cost(network, images) == foretold
    assert foretold.macs < 0.3 * before.macs
