"""Networks and images in float64 on which the criteria that need data are compared with slow definitions."""

import torch
import torch.nn.functional as F
from torch import nn

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


class Twice(nn.Module):
    """Has a layer that runs twice: the network cannot run in parts."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.second(torch.relu(self.first(x))))))
        return self.fc(x.mean((2, 3)))


def chain():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )


def prepared(model):
    """Give batch norms something to do, and calculate in float64 so that comparisons can be sharp."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                nn.init.uniform_(tensor, low, low + 1)
            nn.init.normal_(module.running_mean)
    return model.double()


def pictures(count=12):
    return torch.randn(count, 3, 8, 8, dtype=torch.float64), torch.randint(5, (count,))


def batches(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


def inputs_of(model, images):
    """Return what every layer read, by name."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: found.update({name: x[0]})))
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found
