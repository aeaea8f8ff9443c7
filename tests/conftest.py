"""What holds for every test: no example is judged by its time, and a failing one can be replayed."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A loaded CI machine is slow, not wrong. print_blob gives the line that replays a failure.
settings.register_profile("runner", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("runner"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "runner"))
