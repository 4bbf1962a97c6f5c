"""The simulator: predicts time and speedup on a named device before anything runs there."""

from maskdsl.simulator.bounds import speedup_bounds
from maskdsl.simulator.cost import Work
from maskdsl.simulator.devices import Device, device_names, load_device
from maskdsl.simulator.predict import Estimate, Prediction, layout_cost, simulate

__all__ = [
    "Device",
    "Estimate",
    "Prediction",
    "Work",
    "device_names",
    "layout_cost",
    "load_device",
    "simulate",
    "speedup_bounds",
]
