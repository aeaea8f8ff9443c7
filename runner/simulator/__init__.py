"""An OpenAI-compatible server that makes everything up: for trying the runner, for its tests, for rehearsing failures.

It shares nothing with the client half but the error types and the bounds, so that a mistake in one can't hide in the
other.

    async with simulator_process(PRESETS["flaky"]) as simulator:
        …  # simulator.base_url
"""

from __future__ import annotations

from runner.simulator.app import make_app
from runner.simulator.faults import SCENARIOS, Scenario
from runner.simulator.ledger import Entry, Ledger
from runner.simulator.plan import expected_text
from runner.simulator.process import Simulator, SimulatorError, simulator_process
from runner.simulator.profile import PRESETS, Profile
from runner.simulator.rehearsal import prompt_key
from runner.simulator.server import running_app, serve, serve_forever

__all__ = [
    "PRESETS",
    "SCENARIOS",
    "Entry",
    "Ledger",
    "Profile",
    "Scenario",
    "Simulator",
    "SimulatorError",
    "expected_text",
    "make_app",
    "prompt_key",
    "running_app",
    "serve",
    "serve_forever",
    "simulator_process",
]
