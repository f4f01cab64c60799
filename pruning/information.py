"""How much features know about labels: a kernel's dependence, or a critic that is trained to tell pairs apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIDDEN = 64
LEARNING_RATE = 1e-2


def normalised_hsic(features: Tensor, labels: Tensor) -> Tensor:
    """Return ⟨K, L⟩ / (‖K‖·‖L‖) for the centred linear kernels K of features and L of one-hot labels, 0 … 1.

    This is linear CKA: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019.

    Args:
        features: `[images, features]`.
        labels: int64 `[images]`, of at least two classes.

    Returns:
        A scalar to differentiate; 0 where all images have the same features.
    """
    x = features - features.mean(dim=0)
    K = x @ x.T
    L = (labels[:, None] == labels).to(x)
    L = L - L.mean(dim=0)  # K is centred on both sides, which centres the other side of L as well
    L = L - L.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(K)
    if norm == 0:
        return K.sum()
    dependence: Tensor = (K * L).sum() / (norm * torch.linalg.vector_norm(L))
    return dependence


class Critic:
    """MINE's estimate: how well a small network tells true pairs of features and label from chance pairs.

    The critic T is a layer of 64 ReLUs on features and one-hot label. Its bound on the information (Donsker and
    Varadhan) is mean T(x, y) − log mean exp T(x, y′), in nats.

    Paper: Belghazi et al., Mutual Information Neural Estimation, ICML 2018.
    Differs: the second mean is over all pairs of an image and an image's label, the paper draws some: there are few
    labels. Without the paper's correction for the bias of a small batch's gradient. Features are standardised.

    Args:
        features: to be told from each other, float64 `[images, features]`.
        labels: int64 `[images]`.
        steps: how many steps of Adam to make.
        batch: on how many images, drawn anew for each step.
        seed: of the first weights and the draws.
    """

    def __init__(self, features: Tensor, labels: Tensor, *, steps: int, batch: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        inputs, classes = features.shape[1], int(labels.max()) + 1

        def first(*shape: int, fan_in: int) -> Tensor:
            weights = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
            return weights.to(features.device).requires_grad_()

        self.mean = features.mean(dim=0)
        spread = features.std(dim=0, correction=0)
        self.spread = torch.where(spread == 0, 1, spread)
        self.weights = (
            first(inputs, HIDDEN, fan_in=inputs),
            first(classes, HIDDEN, fan_in=1),
            first(HIDDEN, fan_in=HIDDEN),
        )
        with torch.enable_grad():
            optimizer = torch.optim.Adam(self.weights, lr=LEARNING_RATE)
            for _ in range(steps):
                drawn = torch.randperm(len(labels), generator=generator)[:batch].to(labels.device)
                optimizer.zero_grad()
                (-self(features[drawn], labels[drawn])).backward()
                optimizer.step()
        for weights in self.weights:
            weights.requires_grad_(False)

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the bound on some images, in nats, to differentiate with respect to the features."""
        of_features, of_labels, out = self.weights
        hidden = ((features - self.mean) / self.spread) @ of_features
        T = torch.relu(hidden[:, None] + of_labels) @ out  # [images, classes]
        joint = T.gather(1, labels[:, None]).mean()
        chances = torch.bincount(labels, minlength=len(of_labels)).to(T) / len(labels) ** 2
        return joint - torch.logsumexp(T + chances.log(), dim=(0, 1))
