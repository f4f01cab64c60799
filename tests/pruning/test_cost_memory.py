"""Counted memory is what lies in real tensors while a graph runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from modelled import NETWORKS, Step, build, image_of
from torch import Tensor, fx, nn
from torch.nn import functional as F
from two_heads import IMAGES, TwoHeads, held

from pruning.cost import Memory, count_cost, count_memory
from pruning.errors import GraphError
from pruning.latency import measure_latency
from pruning.lineage.trace import trace
from pruning.models import build_model
from pruning.policy import ModelSpec


@dataclass(slots=True)
class Pair:
    one: Tensor
    other: Tensor


@fx.wrap
def pair(x: Tensor) -> Pair:
    return Pair(x + 1, x + 2)


def activations(run: Callable[[Any, Tensor], Any], **layers: Any) -> tuple[int, int]:
    """Return all and the most at one time, in floats, for an image of 2 × 4 × 4 (32 floats)."""
    memory = count_memory(Step(run, **layers), torch.zeros(3, 2, 4, 4))
    assert memory.activation_bytes % 4 == memory.peak_activation_bytes % 4 == 0
    return memory.activation_bytes // 4, memory.peak_activation_bytes // 4


# ── the slow, obvious definition ─────────────────────────────────────────────────────────────────────────────────────


def by_interpreting(network: nn.Module, image: Tensor) -> Memory:
    """Run the graph on the CPU with real tensors, keep a list of those that somebody will read, and add them up."""
    graph = trace(network)
    order = list(graph.nodes)
    own = [*network.parameters(), *network.buffers(), image]
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept_alive: list[Any] = []  # so that no memory is used twice
    living: dict[fx.Node, Any] = {}
    seen: dict[int, int] = {}
    peak = 0
    interpreter = fx.Interpreter(fx.GraphModule(network, graph), garbage_collect_values=False)
    interpreter.args_iter = iter([image])
    for number, node in enumerate(order):
        with torch.no_grad():
            living[node] = interpreter.env[node] = interpreter.run_node(node)
        kept_alive.append(living[node])
        tensors = [leaf for value in living.values() for leaf in leaves(value)]
        now = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        now = {place: size for place, size in now.items() if place not in not_counted}
        seen |= now
        peak = max(peak, sum(now.values()))
        living = {other: value for other, value in living.items() if set(other.users) & set(order[number + 1 :])}
    return Memory(sum(tensor.nbytes for tensor in own[:-1]), sum(seen.values()), peak)


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (tuple, list)) else []


@pytest.mark.parametrize("name", [*NETWORKS, "regnet_y_400mf", "efficientnet_b0", "preresnet56"])
def test_what_is_counted_lies_in_memory(name: str) -> None:
    network, image = build(name), image_of(NETWORKS.get(name, 64))
    assert count_memory(network, image) == by_interpreting(network, image)


def test_a_small_network_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 5)
    )
    maps = [6 * 16, 6 * 16, 6 * 16, 4 * 16, 5]  # flattening is a view
    weights = (2 * 6 + 6) + (4 * 6) + (6 * 4 + 4) + (64 * 5 + 5)
    counter = 8  # batch norm counts batches, int64
    assert count_memory(network, torch.zeros(9, 2, 4, 4)) == Memory(4 * weights + counter, 4 * sum(maps), 4 * 2 * 96)


def test_the_measured_peak_holds_weights_image_and_the_counted_peak() -> None:
    network, image = build("vgg16_bn_cifar"), image_of(32)
    memory = count_memory(network, image)
    measured = measure_latency(network, image, repeats=1, warmup=0).peak_memory_bytes
    assert measured == memory.weight_bytes + memory.peak_activation_bytes + image.nbytes


README = Path(__file__).parents[2] / "pruning" / "README.md"


def tables() -> dict[str, list[list[str]]]:
    """Return for each network what the README's tables say of it."""
    found: dict[str, list[list[str]]] = {}
    for line in README.read_text().partition("<!-- costs -->")[2].partition("<!-- /costs -->")[0].splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("| ") and cells[0].replace(",", "").isdigit():
            found.setdefault(name, []).append(cells)
    return found


@pytest.mark.parametrize("name", tables())
def test_the_tables_of_the_readme_are_what_is_counted(name: str) -> None:
    pixels, classes = (32, 10) if name == "resnet20" else (224, 1000)
    network, image = build_model(ModelSpec(name=name, num_classes=classes)), image_of(pixels)
    memory = count_memory(network, image)
    sizes = (memory.weight_bytes, memory.activation_bytes, memory.peak_activation_bytes)
    macs, bytes_ = tables()[name]
    assert macs[0] == f"{count_cost(network, image).macs:,}"
    assert bytes_[:3] == [f"{size:,}" for size in sizes]


# ── what is an activation, and how long it lives ─────────────────────────────────────────────────────────────────────


STEPS: dict[str, tuple[Callable[[Any, Tensor], Any], int, int]] = {
    "the image": (lambda _, x: x, 0, 0),
    "views of it": (lambda _, x: x.transpose(1, 2)[:, :2].unsqueeze(1).chunk(2, 2)[0], 0, 0),
    "a copy that more images need": (lambda _, x: x.transpose(1, 2).flatten(0, 1), 32, 32),
    "in place on it": (lambda _, x: F.relu(x, inplace=True), 0, 0),
    "one": (lambda _, x: F.relu(x), 32, 32),
    "a chain": (lambda _, x: F.relu(F.relu(F.relu(x))), 96, 64),
    "in place": (lambda _, x: F.relu_(F.relu(x)).mul_(2), 32, 32),
    "the use of a view": (lambda _, x: (a := F.relu(x)).view(-1) + a.mean(), 32 + 1 + 32, 65),
    "a copy": (lambda _, x: F.relu(x).transpose(1, 3).contiguous(), 64, 64),
    "nothing to copy": (lambda _, x: F.relu(x).contiguous(), 32, 32),
    "three at once": (lambda _, x: torch.cat([a := F.relu(x), a.abs(), a]), 32 + 32 + 96, 32 + 32 + 96),
    "a branch": (lambda _, x: (a := F.relu(x)) + a.abs().sqrt().mean((2, 3), keepdim=True), 32 * 3 + 2 + 32, 32 * 3),
    "outputs stay": (lambda _, x: [F.relu(x), F.relu(x), x], 64, 64),
    "other types": (lambda _, x: (F.relu(x) > 0).double(), 32 + 8 + 64, 72),  # of one byte, of eight bytes
    "written in the code": (lambda _, x: x + torch.ones(4, 4), 32, 32),
    "results in an object": (lambda _, x: pair(F.relu(x)).one, 32 + 2 * 32, 96),
    "two results": (lambda _, x: x.max(dim=1), 16 + 2 * 16, 48),  # values, and indices of eight bytes
}


@pytest.mark.parametrize(("run", "total", "most"), STEPS.values(), ids=STEPS)
def test_single_steps(run: Callable[[Any, Tensor], Any], total: int, most: int) -> None:
    assert activations(run) == (total, most)


def test_an_activation_lives_until_its_last_reader() -> None:
    def residual(_: Any, x: Tensor) -> Tensor:
        a = F.relu(x)
        b = a.abs().abs().abs()
        return a + b

    assert activations(residual) == (5 * 32, 3 * 32)


def test_what_does_not_depend_on_the_image_counts_once_anew() -> None:
    positions = nn.Parameter(torch.zeros(16))
    assert activations(lambda net, x: x + net.table[:4], table=positions) == (32, 32)
    assert activations(lambda net, x: x + net.table[:4].exp(), table=positions) == (4 + 32, 36)
    assert activations(lambda net, x: x + net.table.view(4, 4).expand(3, -1, -1)[:1], table=positions) == (32, 32)


def test_a_layer_is_one_operation() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def attend(net: Any, x: Tensor) -> Tensor:
        tokens = F.relu(x).flatten(2)  # [images, 2, 16]
        return net.attention(tokens[..., :4], tokens[..., :4], tokens[..., :4], need_weights=False)[0]

    assert activations(attend, attention=attention) == (32 + 8, 40)


def test_tied_weights_count_once_and_buffers_of_all_kinds_count() -> None:
    first, second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    second.weight = first.weight
    network = nn.Sequential(first, second)
    network.register_buffer("kept", torch.zeros(3, dtype=torch.int64))
    network.register_buffer("passing", torch.zeros(5, dtype=torch.bool), persistent=False)
    assert count_memory(network, torch.zeros(1, 3, 2, 2)).weight_bytes == 9 * 4 + 3 * 8 + 5


@pytest.mark.parametrize("name", ["resnet20", "vit_b_16"])
def test_half_as_many_bytes_a_number_are_half_the_memory(name: str) -> None:
    network, image = build(name), image_of(NETWORKS[name])
    single, half = (count_memory(network.to(kind), image.to(kind)) for kind in (torch.float32, torch.bfloat16))
    integers = sum(buffer.nbytes for buffer in network.buffers() if not buffer.is_floating_point())
    assert half.weight_bytes - integers == (single.weight_bytes - integers) // 2
    assert half.activation_bytes * 2 == single.activation_bytes
    assert half.peak_activation_bytes * 2 == single.peak_activation_bytes


def test_counting_leaves_the_network_and_the_random_state_as_found() -> None:
    network = TwoHeads().train()
    network.drop.eval()
    before, random = held(network), torch.get_rng_state()
    count_memory(network, IMAGES)
    with pytest.raises(GraphError):
        count_memory(network, IMAGES[:, :2])
    assert held(network) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_an_image_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(GraphError, match=r"TwoHeads does not run on \(1, 2, 16, 16\): .*channel") as caught:
        count_memory(TwoHeads(), IMAGES[:, :2])
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_traced_is_told() -> None:
    with pytest.raises(GraphError, match="Step: cannot be traced"):
        count_memory(Step(lambda _, x: x if x.sum() > 0 else -x), IMAGES)
