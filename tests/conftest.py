"""For all tests."""

from hypothesis import HealthCheck, settings

# A machine may be busy: how long an example takes says nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
