"""For files out of order."""

import pytest
from readers import save_cut


@pytest.fixture
def pruned(tmp_path):
    """The folder of a pruned `readers:network`."""
    save_cut(tmp_path / "pruned")
    return tmp_path / "pruned"
