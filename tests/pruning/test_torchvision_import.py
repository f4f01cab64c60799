import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code, *path):
    """Run code in a process of its own: whether torchvision was imported before is what these tests are about."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.fixture
def stand_in(tmp_path):
    """A package called torchvision whose compiled part is a file that no loader takes."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    (tmp_path / "torchvision" / "_C.so").write_text("not a library")
    return tmp_path


DECLARED = "print(*(hasattr(torch.ops.torchvision, name) for name in ('nms', 'qnms')))"


def test_models_transforms_and_data_sets_work_after_the_import():
    out = run("""
        import torch
        from pruning.models.torchvision_import import import_torchvision
        torchvision = import_torchvision()
        import torchvision.datasets, torchvision.transforms.v2 as v2
        print(torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape[1])
        images = torch.zeros(3, 40, 40, dtype=torch.uint8)
        print(*v2.Compose([v2.RandomCrop(32), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32)])(images).shape)
        print(len(torchvision.datasets.FakeData(size=4)))
        print(import_torchvision() is torchvision)
    """)
    assert out == ["1000", "3", "32", "32", "4", "True"]


def test_an_import_that_failed_before_is_cured():
    out = run("""
        try:
            import torchvision
        except RuntimeError:
            pass
        from pruning.models.torchvision_import import import_torchvision
        print(import_torchvision().models.alexnet.__name__)
    """)
    assert out == ["alexnet"]


def test_operators_that_somebody_else_declared_are_left_alone():
    out = run("""
        import torch
        theirs = torch.library.Library("torchvision", "DEF")
        theirs.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from pruning.models.torchvision_import import import_torchvision
        print(import_torchvision().models.alexnet.__name__)
    """)
    assert out == ["alexnet"]


def test_operators_are_declared_where_the_compiled_part_does_not_load(stand_in):
    code = "import torch; from pruning.models.torchvision_import import import_torchvision as load; load(); " + DECLARED
    assert run(code, stand_in) == ["True", "True"]


def test_nothing_is_declared_where_the_compiled_part_loads(stand_in):
    code = f"""
        import torch
        torch.ops.load_library = print
        from pruning.models.torchvision_import import import_torchvision
        print(import_torchvision().__name__)
        {DECLARED}
    """
    assert run(code, stand_in) == [str(stand_in / "torchvision" / "_C.so"), "torchvision", "False", "False"]


def test_a_missing_torchvision_is_told():
    out = run("""
        import importlib.util
        importlib.util.find_spec = lambda name: None
        from pruning.models.torchvision_import import import_torchvision
        try:
            import_torchvision()
        except ModuleNotFoundError as error:
            print(error)
    """)
    assert " ".join(out) == "torchvision is not installed: pip install torchvision"
