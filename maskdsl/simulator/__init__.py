"""The simulator: predicts time and speedup on a named device before anything runs there."""

from maskdsl.simulator.bounds import speedup_bounds
from maskdsl.simulator.cost import CompiledKernel, KernelCost, Work
from maskdsl.simulator.devices import Device, device_for, device_names, load_device
from maskdsl.simulator.engines import Engine, engine_names, load_engine
from maskdsl.simulator.estimate import Estimate
from maskdsl.simulator.layout import layout_cost
from maskdsl.simulator.model import ModelPrediction, simulate_model
from maskdsl.simulator.predict import simulate
from maskdsl.simulator.prediction import Prediction
from maskdsl.simulator.sweep import Sweep, sweep

__all__ = [
    "CompiledKernel",
    "Device",
    "Engine",
    "Estimate",
    "KernelCost",
    "ModelPrediction",
    "Prediction",
    "Sweep",
    "Work",
    "device_for",
    "device_names",
    "engine_names",
    "layout_cost",
    "load_device",
    "load_engine",
    "simulate",
    "simulate_model",
    "speedup_bounds",
    "sweep",
]
