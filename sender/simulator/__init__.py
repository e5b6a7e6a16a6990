"""An APNs that behaves, or misbehaves on request: for tests, demos and rehearsals. Needs the worker extra (ngh2)."""

from sender.simulator.behaviour import PASSING, Behaviour, Rule, Shares, behaviour_of
from sender.simulator.control import Control
from sender.simulator.journal import Counters, Received
from sender.simulator.process import RemoteControl, SimulatorProcess
from sender.simulator.providers import ProviderKey, load_provider_key
from sender.simulator.scenario import (
    Drop,
    GoAway,
    Outage,
    OutageKind,
    ProviderTokens,
    Scenario,
    Settings,
    SettingsChange,
    Storm,
    load_scenario,
    parse_scenario,
)
from sender.simulator.server import Simulator, SimulatorConfig

__all__ = [
    "PASSING",
    "Behaviour",
    "Control",
    "Counters",
    "Drop",
    "GoAway",
    "Outage",
    "OutageKind",
    "ProviderKey",
    "ProviderTokens",
    "Received",
    "RemoteControl",
    "Rule",
    "Scenario",
    "Settings",
    "SettingsChange",
    "Shares",
    "Simulator",
    "SimulatorConfig",
    "SimulatorProcess",
    "Storm",
    "behaviour_of",
    "load_provider_key",
    "load_scenario",
    "parse_scenario",
]
