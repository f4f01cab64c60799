"""One pass over the images: what observers see of it, how much of it, and what it leaves behind."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from pruning.errors import RankingError
from pruning.finding import find_groups
from pruning.modes import batch_statistics
from pruning.streaming import Request, observe


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.pool, self.fc = nn.AvgPool2d(4), nn.Linear(4 * 4, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.fc(self.pool(torch.relu(self.left(x) + self.right(x) + x)).flatten(1))


@dataclass
class Keeps:
    """Keeps all that it sees, as no criterion would."""

    readings: list = field(default_factory=list)

    def see(self, reading):
        self.readings.append((reading, reading.maps.clone()))

    def maps(self, layer):
        return torch.cat([maps for reading, maps in self.readings if reading.part.layer == layer])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def data():
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(11) % 5


def batches(data, size):
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def shown(network, data, size=4, **asked):
    keeps = Keeps()
    observe(network, find_groups(network, data[0][:1]), batches(data, size), [Request(keeps, **asked)])
    return keeps


def test_the_maps_are_what_each_layer_reads(network, data):
    keeps = shown(network, data)
    x = torch.relu(network.stem(data[0]))
    torch.testing.assert_close(keeps.maps("left"), x)
    torch.testing.assert_close(keeps.maps("right"), x)
    flat = network.pool(torch.relu(network.left(x) + network.right(x) + x)).flatten(2)
    torch.testing.assert_close(keeps.maps("fc"), flat[:, :, None])  # four places of one channel, in a row
    for reading, _ in keeps.readings:
        assert len(reading.labels) == len(reading.inputs) == len(reading.output)
    outputs = [reading.output for reading, _ in keeps.readings if reading.part.layer == "left"]
    torch.testing.assert_close(torch.cat(outputs), network.left(x))


def test_a_tensor_that_two_layers_read_is_told_once_a_pass(network, data):
    repeated = [(reading.part.layer, reading.repeated) for reading, _ in shown(network, data, 11).readings]
    assert repeated == [("left", False), ("right", True), ("fc", False)]


@pytest.mark.parametrize("images", [1, 4, 7, 11, 50])
@pytest.mark.parametrize("together", [False, True])
def test_an_observer_sees_the_first_images_it_asks_for(network, data, images, together):
    keeps = shown(network, data, 3, images=images, together=together)
    many = min(images, 11)
    torch.testing.assert_close(keeps.maps("left"), torch.relu(network.stem(data[0]))[:many])
    calls = sum(reading.part.layer == "left" for reading, _ in keeps.readings)
    assert calls == (1 if together else -(-many // 3))


def test_observers_share_a_pass_and_stop_it_when_none_wants_more(network, data):
    few, some, passes = Keeps(), Keeps(), []
    network.register_forward_hook(lambda *_: passes.append(1))
    requests = [Request(few, images=2, together=True), Request(some, images=5)]
    observe(network, find_groups(network, data[0][:1]), batches(data, 1), requests)
    assert [len(few.maps("fc")), len(some.maps("fc"))] == [2, 5]
    assert len(passes) == 1 + 3  # the first two images together, then one by one


def test_hooks_are_gone_and_no_graph_is_kept_also_after_an_error(network, data):
    class Breaks:
        def see(self, reading):
            assert not reading.inputs.requires_grad
            raise KeyError("enough")

    with pytest.raises(KeyError):
        observe(network, find_groups(network, data[0][:1]), batches(data, 4), [Request(Breaks())])
    assert not any(module._forward_hooks for module in network.modules())


def test_a_layer_without_a_row_for_each_image_is_refused(data):
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.stem(x).permute(0, 2, 3, 1).flatten(0, 2))

    network = Patches().eval()
    with pytest.raises(RankingError, match="layer 'head': expected an input row for each of 4 images, got 256"):
        observe(network, find_groups(network, data[0][:1]), batches(data, 4), [Request(Keeps())])


def test_batch_statistics_leave_modes_and_running_statistics_as_found(data):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with batch_statistics(network):
        out = network(data[0])
        assert out.mean(dim=(0, 2, 3)).abs().max() < 1e-5  # normalised by its own mean, and nothing is dropped
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    with batch_statistics(network, on=False):
        assert not torch.equal(network(data[0]), out)
