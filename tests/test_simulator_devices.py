"""Devices and engines: files of figures, each with its source."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from simulator_plans import FakePlan, one_line

from maskdsl.errors import BindError
from maskdsl.simulator import (
    device_for,
    device_names,
    engine_names,
    load_device,
    load_engine,
    simulate,
)

DEVICES = ["a100", "b200", "h100", "h200", "mi300x", "rtx4090"]


@pytest.mark.parametrize("name", DEVICES)
def test_device_files_carry_their_sources(name):
    device = load_device(name.upper())
    assert device.name == name and load_device(device) is device
    figures = set(device.__dataclass_fields__) - {"name", "full_name", "target", "sources"}
    assert set(device.sources) == figures
    assert all(len(text) > 20 for text in device.sources.values())


@pytest.mark.parametrize("name", DEVICES)
def test_device_figures_agree_with_each_other(name):
    device = load_device(name)
    each = device.bf16_flops / (device.compute_units * device.clock)
    assert math.log2(each) == pytest.approx(round(math.log2(each)), abs=0.01)
    assert device.fp16_flops == device.bf16_flops == pytest.approx(2 * device.tf32_flops)
    assert device.shared_per_block <= device.shared_per_unit
    assert device.l2_bytes <= device.last_level_cache_bytes < device.memory_bytes
    assert device.memory_bandwidth < device.l2_bandwidth
    assert device.integer_ops_per_clock <= device.issue_lanes_per_clock


@pytest.mark.parametrize("name", DEVICES)
def test_each_target_has_a_device(name):
    target = load_device(name).target
    assert device_for(target).target == target
    assert device_for("sm_90").name == "h100"


def test_unknown_targets_give_one_line():
    with pytest.raises(BindError) as error:
        device_for("sm_91")
    assert "sm_91" in one_line(error) and "gfx942" in one_line(error)


def test_device_names():
    assert device_names() == DEVICES


def write_device(path: Path, change=lambda text: text) -> str:
    """A copy of the h100's file, changed."""
    from maskdsl.simulator import devices

    original = Path(devices.__file__).with_name("devices") / "h100.toml"
    path.write_text(change(original.read_text(encoding="utf-8")), encoding="utf-8")
    return str(path)


def test_a_users_device_file(tmp_path):
    path = write_device(tmp_path / "mine.toml", lambda text: text.replace('"h100"', '"mine"'))
    plan = FakePlan(np.ones((1, 9, 9), int))
    mine, h100 = simulate(plan, device=Path(path)), simulate(plan, device="h100")
    assert mine.device == "mine" and mine.time == h100.time


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("compute_units = {", "units = {", ["units"]),
        ("value = 132", "value = -1", ["compute_units", "positive"]),
        ("value = 132", "value = 1.5", ["compute_units", "whole number"]),
        ("value = 132", 'value = "many"', ["compute_units", "number"]),
        ('{ value = 132, source = "whitepaper" }', "132", ["compute_units", "source"]),
        ('value = 132, source = "whitepaper"', 'value = 132, source = "hearsay"', ["[sources]"]),
        ('full_name = "', 'long_name = "', ["long_name"]),
        ("\n[sources]", "\n[sources", []),
    ],
)
def test_wrong_device_files_give_one_line(tmp_path, old, new, words):
    path = write_device(tmp_path / "mine.toml", lambda text: text.replace(old, new, 1))
    with pytest.raises(BindError) as error:
        load_device(path)
    text = one_line(error)
    assert all(word in text for word in [*words, "mine.toml"])


@pytest.mark.parametrize("name", ["maskdsl", "natten"])
def test_engine_files(name):
    engine = load_engine(name)
    assert engine.name == name and load_engine(engine) is engine
    assert 0 <= engine.overlap <= 1
    factors = [*engine.stall.values(), *engine.dense_stall.values()]
    assert all(1 <= factor < 3 for factor in factors)
    assert set(engine.stall) - {"default"} <= set(DEVICES)
    assert engine.stall_on("a card of one's own") == engine.stall["default"]
    assert {"overlap", "stall"} <= set(engine.sources)


def test_engine_names():
    assert engine_names() == ["maskdsl", "natten"]
