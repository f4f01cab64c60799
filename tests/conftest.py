"""For all tests."""

import pytest
from hypothesis import HealthCheck, settings

# A machine may be busy: how long an example takes says nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def own_configuration(tmp_path_factory):
    """Keep tests away from the user's configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield
