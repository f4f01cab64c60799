"""What papers report of networks that a sweep may cut: change of accuracy and MACs kept, by their own account."""

from __future__ import annotations

from dataclasses import dataclass

from pruning import ModelSpec
from search.sections import DataSpec


@dataclass(frozen=True)
class Reported:
    """A cut network in a paper.

    Attributes:
        images: the data set whose test images it was measured on.
        network: what was cut.
        source: paper and table.
        method: by whom, in the source's words.
        change: of the top-1 accuracy in points, against the source's own baseline.
        macs: kept, in percent of the uncut network's.
    """

    images: str
    network: str
    source: str
    method: str
    change: float
    macs: float


def reported_on(model: ModelSpec, data: DataSpec) -> tuple[Reported, ...]:
    """Return the points of a network on the images that a source of data, or the number of classes, speaks of."""
    images, classes = _IMAGES.get(data.name), model.num_classes
    known = {name for name, number in _CLASSES.items() if number == classes and (images in (None, name))}
    if data.name not in (*_IMAGES, "image_folder"):
        return ()
    return tuple(point for point in REPORTED if point.network == _NETWORKS.get(model.name) and point.images in known)


_CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100, "ImageNet": 1000}
_IMAGES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
_NETWORKS = {
    "resnet56": "ResNet-56",
    "preresnet56": "ResNet-56",
    "resnet110": "ResNet-110",
    "vgg16_bn_cifar": "VGG-16",
    "vgg19_bn_cifar": "VGG-19",
    "mobilenet_v1_cifar": "MobileNet v1",
    "mobilenet_v1": "MobileNet v1",
    "mobilenet_v2_cifar": "MobileNet v2",
    "mobilenet_v2_expand": "MobileNet v2",
    "mobilenet_v2": "MobileNet v2",
    "googlenet_cifar": "GoogLeNet",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
}


def _table(images: str, network: str, source: str, *rows: tuple[str, float, float]) -> tuple[Reported, ...]:
    return tuple(Reported(images, network, source, *row) for row in rows)


_DCP = "Zhuang et al. (DCP), NeurIPS 2018"
_CCP = "Peng et al. (CCP), ICML 2019, as listed by Blalock et al. (ShrinkBench), MLSys 2020"
_FPGM = "He et al. (FPGM), CVPR 2019, table of CIFAR-10"
_HRANK = "Lin et al. (HRank), CVPR 2020, as listed in the authors' repository"
_HRANK_PLUS = "HRankPlus, as listed in the authors' repository"
_NSPPR = "Zhuang et al. (polarization), NeurIPS 2020"
_APIB = "Guo et al. (APIB), ICCV 2023"

REPORTED = (
    *_table(
        "CIFAR-10",
        "ResNet-56",
        f"{_DCP}, Table 1 and S5 (pre-activation)",
        ("WM", -0.56, 50.28),
        ("WM+", -0.45, 50.28),
        ("Random DCP", -0.63, 50.28),
        ("DCP", -0.31, 50.28),
        ("DCP-Adapt", +0.01, 52.91),
    ),
    *_table(
        "CIFAR-10",
        "ResNet-56",
        f"{_DCP}, Table S2 (pre-activation)",
        ("ThiNet", -0.82, 50.0),
        ("channel pruning (LASSO)", -1.00, 50.0),
    ),
    *_table("CIFAR-10", "ResNet-56", _CCP, ("CCP", -0.04, 53.0), ("CCP", -0.08, 47.4), ("CCP-AC", +0.19, 53.0)),
    *_table("CIFAR-10", "ResNet-56", _FPGM, ("L1", +0.02, 72.4), ("FPGM", -0.10, 47.4)),
    *_table("CIFAR-10", "ResNet-56", _HRANK, ("HRank", -0.09, 50.0)),
    *_table(
        "CIFAR-10",
        "ResNet-56",
        _HRANK_PLUS,
        ("HRankPlus", +0.59, 72.0),
        ("HRankPlus", +0.31, 52.6),
        ("HRankPlus", -0.94, 25.9),
    ),
    *_table(
        "CIFAR-10",
        "ResNet-56",
        _NSPPR,
        ("polarization", +0.03, 53.0),
        ("polarization", -1.17, 29.0),
        ("Network Slimming", -0.53, 52.0),
    ),
    *_table("CIFAR-10", "ResNet-110", _FPGM, ("L1", -0.23, 61.4)),
    *_table("CIFAR-10", "ResNet-110", _HRANK, ("HRank", +0.73, 62.1)),
    *_table(
        "CIFAR-10",
        "ResNet-110",
        _HRANK_PLUS,
        ("HRankPlus", +0.70, 55.6),
        ("HRankPlus", +0.31, 40.4),
        ("HRankPlus", -0.27, 28.4),
    ),
    *_table("CIFAR-10", "VGG-16", f"{_APIB}, abstract", ("APIB", +0.40, 40.0)),
    *_table("CIFAR-10", "VGG-16", _FPGM, ("L1", -0.30, 66.0)),
    *_table("CIFAR-10", "VGG-16", _HRANK, ("HRank", -1.62, 34.7)),
    *_table(
        "CIFAR-10",
        "VGG-16",
        _HRANK_PLUS,
        ("HRankPlus", -0.23, 41.9),
        ("HRankPlus", -0.40, 33.4),
        ("HRankPlus", -0.86, 21.4),
    ),
    *_table("CIFAR-10", "VGG-16", _NSPPR, ("polarization", +0.04, 46.0)),
    *_table(
        "CIFAR-10",
        "VGG-19",
        f"{_DCP}, Table 1 and S5",
        ("ThiNet", -0.14, 49.92),
        ("channel pruning (LASSO)", -0.32, 49.92),
        ("Network Slimming", -0.19, 49.02),
        ("WM", -0.38, 49.92),
        ("WM+", -0.11, 49.92),
        ("Random DCP", -0.14, 49.92),
        ("DCP", +0.17, 49.92),
        ("DCP-Adapt", +0.58, 34.97),
    ),
    *_table("CIFAR-10", "VGG-19", f"{_DCP}, Table 7", ("DCP-Adapt", -0.62, 18.69), ("DCP-Adapt", -6.67, 3.65)),
    *_table(
        "CIFAR-10",
        "MobileNet v1",
        f"{_DCP}, Table 2 and S5",
        ("WM", -0.48, 57.12),
        ("WM+", -0.22, 57.12),
        ("Random DCP", -0.30, 57.12),
        ("DCP", +0.41, 57.12),
    ),
    *_table(
        "CIFAR-10",
        "MobileNet v2",
        f"{_DCP}, Table 2",
        ("WM", -0.45, 73.53),
        ("WM+", -0.40, 73.53),
        ("Random DCP", -0.57, 73.53),
        ("DCP", +0.22, 73.53),
    ),
    *_table("CIFAR-10", "GoogLeNet", _HRANK, ("HRank", -0.98, 29.6)),
    *_table("CIFAR-10", "GoogLeNet", _HRANK_PLUS, ("HRankPlus", -0.01, 42.8), ("HRankPlus", -0.23, 26.1)),
    *_table(
        "CIFAR-100",
        "ResNet-56",
        f"{_APIB}, Table 1 of the supplement",
        ("polarization", -0.03, 75.0),
        ("DLRFC", +0.27, 74.0),
        ("APIB", +0.79, 74.0),
        ("PGMPF", -2.71, 47.0),
        ("APIB", -1.63, 47.0),
    ),
    *_table(
        "CIFAR-100",
        "VGG-16",
        f"{_APIB}, Table 1 of the supplement",
        ("CPGMI", -0.27, 63.0),
        ("CPMC", -0.79, 52.0),
        ("PGMPF", -0.35, 52.0),
        ("PGMPF-SFP", -0.14, 52.0),
        ("APIB", +0.09, 52.0),
    ),
    *_table("CIFAR-100", "VGG-16", _NSPPR, ("polarization", +0.42, 57.0)),
    *_table(
        "ImageNet",
        "ResNet-18",
        f"{_DCP}, Table 5 and S4",
        ("DCP", -0.43, 72.52),
        ("DCP", -2.29, 53.80),
        ("DCP", -5.52, 35.86),
    ),
    *_table("ImageNet", "ResNet-34", "He et al. (FPGM), CVPR 2019, table of ImageNet", ("L1", -1.06, 75.8)),
    *_table(
        "ImageNet",
        "ResNet-50",
        f"{_DCP}, Table 5 and S4",
        ("DCP", +0.39, 64.31),
        ("DCP", -1.06, 44.56),
        ("DCP", -3.26, 28.85),
    ),
    *_table(
        "ImageNet",
        "ResNet-50",
        f"{_DCP}, Table 3",
        ("ThiNet", -1.87, 44.56),
        ("WM", -2.81, 44.56),
        ("WM+", -2.41, 44.56),
    ),
    *_table("ImageNet", "ResNet-50", _CCP, ("CCP", -0.65, 51.2), ("CCP", -0.94, 45.9), ("CCP-AC", -0.83, 45.9)),
    *_table("ImageNet", "ResNet-50", f"{_APIB}, abstract", ("APIB", -0.08, 44.0)),
    *_table("ImageNet", "ResNet-50", _NSPPR, ("polarization", -0.52, 46.0), ("polarization", -2.00, 30.0)),
    *_table("ImageNet", "ResNet-50", "Cai et al. (PGMPF), AAAI 2022, abstract", ("PGMPF", -0.90, 46.5)),
    *_table("ImageNet", "ResNet-50", _HRANK, ("HRank", -4.17, 37.7)),
    *_table("ImageNet", "ResNet-50", _HRANK_PLUS, ("HRankPlus", -0.59, 55.2), ("HRankPlus", -0.32, 37.2)),
    *_table(
        "ImageNet",
        "MobileNet v1",
        f"{_DCP}, Table S3",
        ("ThiNet", -4.67, 28.63),
        ("WM", -6.90, 28.63),
        ("DCP", -3.92, 28.63),
    ),
    *_table(
        "ImageNet",
        "MobileNet v2",
        f"{_DCP}, Table S3",
        ("ThiNet", -6.36, 55.13),
        ("WM", -6.40, 55.13),
        ("DCP", -5.89, 55.13),
    ),
    *_table("ImageNet", "MobileNet v2", _NSPPR, ("polarization", -0.20, 72.0)),
)
"""MACs of DCP's fixed rates are exact counts of the widths that the paper's rule gives."""
