"""For all tests."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine may be busy: how long an example takes says nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

HERE, FIRST = Path(__file__).parent, ("chaos", "search")
"""Folders whose files take minutes: where several jobs share the tests, no job is left with them at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.relative_to(HERE).parts[0] not in FIRST)


@pytest.fixture(scope="session", autouse=True)
def own_configuration(tmp_path_factory):
    """Keep tests away from the user's configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield
