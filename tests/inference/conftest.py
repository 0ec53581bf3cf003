from __future__ import annotations

from hypothesis import HealthCheck, settings

# What is tested is what comes out, not how soon on a busy machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
