"""Sweeps, whole models and pictures."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import maskdsl
from maskdsl.simulator import load_device, plots, simulate, simulate_model

WINDOW = maskdsl.load("std/sliding_window")


def test_every_combination_the_fastest_first() -> None:
    found = maskdsl.sweep(
        *(WINDOW, ["h100", "b200"]),
        tiles=[(128, 64), (64, 64)],
        n=4096,
        window=[256, 1024],
        heads=8,
    )
    assert len(found) == 8 and found.best is found[0] and not found.failed
    times = [p.time for p in found]
    assert times == sorted(times)
    for p in found:
        mask = WINDOW.bind(n=4096, window=p.choice["window"], heads=8)
        alone = simulate(mask.plan(*p.choice["tiles"]), device=p.choice["device"])
        assert p == alone
    chosen = {(p.choice["device"], p.choice["tiles"], p.choice["window"]) for p in found}
    assert chosen == set(itertools.product(("h100", "b200"), [(128, 64), (64, 64)], (256, 1024)))


def test_the_window_that_three_times_faster_affords() -> None:
    windows = [512, 1024, 2048, 4096, 8192, 16384]
    fast = maskdsl.sweep(WINDOW, "h100", n=16384, heads=16, window=windows, least_speedup=3)
    assert all(p.speedup >= 3 for p in fast)
    assert [p.choice["window"] for p in fast] == sorted(
        (p.choice["window"] for p in fast), reverse=True
    )
    best = fast.best.choice["window"]
    wider = WINDOW.bind(n=16384, window=windows[windows.index(best) + 1], heads=16)
    assert simulate(wider, device="h100").speedup < 3
    none = maskdsl.sweep(WINDOW, "h100", n=16384, window=[16384], least_speedup=99)
    assert len(none) == 0
    with pytest.raises(maskdsl.BindError, match="least_speedup"):
        _ = none.best


def test_array_parameters_vary_as_wholes() -> None:
    image = maskdsl.load("std/natten2d")
    rest = {"y": 64, "x": 64, "stride": [1, 1], "dilation": [1, 1], "causal": [False, False]}
    one = maskdsl.sweep(image, window=[9, 9], **rest)
    assert len(one) == 1
    several = maskdsl.sweep(image, window=[[9, 9], np.array([21, 5])], **rest)
    assert len(several) == 2
    assert json.loads(json.dumps(several.to_dict()))["predictions"][0]["choice"]["window"] in (
        [9, 9],
        [21, 5],
    )


def test_tiles_may_be_pairs_or_one_for_both() -> None:
    image = maskdsl.load("std/natten2d")
    rest = {"y": 64, "x": 64, "window": [9, 9], "stride": [1, 1], "dilation": [1, 1]}
    found = maskdsl.sweep(
        image, causal=[False, False], **rest, tiles=[(8, 16), ((8, 16), (8, 8)), None]
    )
    assert {p.choice["tiles"] for p in found} == {((8, 16), (8, 16)), ((8, 16), (8, 8)), None}
    assert {p.q_lanes for p in found} == {128} and not found.failed
    for wrong in ((8, 8, 8), "8x8", (1, 2, 3)):
        with pytest.raises(maskdsl.BindError, match="pairs"):
            maskdsl.sweep(image, causal=[False, False], **rest, tiles=[wrong])
    lines = maskdsl.sweep(WINDOW, n=1024, window=9, tiles=[64, (64, 32), maskdsl.Tile(128)])
    assert {(p.q_lanes, p.kv_lanes) for p in lines} == {(64, 64), (64, 32), (128, 128)}


def test_options_and_masks_and_plans() -> None:
    mask = WINDOW.bind(n=4096, window=256)
    found = maskdsl.sweep(mask, head_dim=[64, 128], direction=["forward", "backward"], batch=2)
    assert len(found) == 4 and {p.batch for p in found} == {2}
    assert len(maskdsl.sweep(mask, window=[64, 128])) == 2
    plan = mask.plan(q_tile=64, kv_tile=64)
    own = load_device("h100")
    assert [p.device for p in maskdsl.sweep(plan, devices=own)] == ["h100"]
    assert len(maskdsl.sweep(plan, devices=["a100", own], engine=["maskdsl", "natten"])) == 4


def test_few_rows_want_smaller_tiles() -> None:
    mask = WINDOW.bind(n=4096, window=1024)
    found = maskdsl.sweep(mask, "h100", lanes=[(128, 64), (64, 64), (32, 64)])
    assert found.best.q_lanes < 128 and len(found) == 3
    many = maskdsl.sweep(mask, "h100", lanes=[(128, 64), (64, 64), (32, 64)], heads=64)
    assert many.best.q_lanes == 128


def test_what_cannot_be_planned_is_told_apart() -> None:
    found = maskdsl.sweep(WINDOW, n=1024, window=256, tiles=[(64, 64), (48, 64)])
    assert len(found) == 1 and len(found.failed) == 1
    choice, why = found.failed[0]
    assert choice["tiles"] == (48, 64) and "48" in why
    assert "cannot: tiles=48 by 64" in found.table()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"widow": 3}, ["widow", "did you mean 'window'?"]),
        ({"n": [], "window": 3}, ["not 0"]),
        ({"n": list(range(200)), "window": list(range(200))}, ["10000", "40000"]),
        ({"n": 64}, ["window"]),
        ({"n": 64, "window": 3, "tiles": [(1, 2, 3)]}, ["pairs", "(1, 2, 3)"]),
        ({"n": 64, "window": 3, "devices": ["h10"]}, ["unknown device 'h10'"]),
    ],
)
def test_wrong_sweeps_give_one_line(arguments, words) -> None:
    with pytest.raises(maskdsl.BindError) as error:
        maskdsl.sweep(WINDOW, **arguments)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_only_patterns_masks_and_plans_are_swept() -> None:
    with pytest.raises(maskdsl.BindError, match="not str"):
        maskdsl.sweep("std/causal")


def test_tables_are_plain_text() -> None:
    found = maskdsl.sweep(WINDOW, ["h100", "a100"], n=4096, window=[256, 512])
    table = found.table()
    assert table.count("h100") == 2 and "window" in table and f"{found[0].speedup:.2f}x" in table
    model = simulate_model([(WINDOW.bind(n=4096, window=256), 3)], 0.5).table()
    assert "sliding_window" in model and "50%" in model
    for text in (table, model):
        assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100


# Whole models


def test_amdahl_by_hand() -> None:
    mask = WINDOW.bind(n=16384, window=1024, heads=16)
    alone = simulate(mask, device="h100")
    model = simulate_model([(mask, 3), (None, 1)], 0.6, device="h100")
    attention = 4 * alone.dense_time / (3 * alone.time + alone.dense_time)
    assert model.attention_speedup == pytest.approx(attention)
    assert model.speedup == pytest.approx(1 / (0.4 + 0.6 / attention))
    assert model.limit == pytest.approx(2.5) and model.speedup < model.limit
    assert simulate_model([(mask, 1)], 1, device="h100").speedup == pytest.approx(alone.speedup)
    assert math.isinf(simulate_model([(mask, 1)], 1, device="h100").limit)
    assert json.loads(json.dumps(model.to_dict()))["speedup"] == pytest.approx(model.speedup)


def test_mixtures_and_training() -> None:
    local, causal = WINDOW.bind(n=8192, window=512), maskdsl.load("std/causal").bind(n=8192)
    parts = [
        simulate(m, heads=h, device="h100", direction=d)
        for d in ("forward", "backward")
        for m, h in ((local, 12), (causal, 4))
    ]
    whole = [
        simulate(local, heads=16, device="h100", direction=d).dense_time
        for d in ("forward", "backward")
    ]
    model = simulate_model([([(local, 12), (causal, 4)], 2)], 0.5, "training", device="h100")
    assert model.layers[0].time == pytest.approx(sum(p.time for p in parts))
    assert model.layers[0].dense_time == pytest.approx(sum(whole))
    assert model.layers[0].name == "sliding_window + causal" and model.layers[0].count == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ([(None, 1)], 0.5),
        ([(WINDOW.bind(n=64, window=3), 0)], 0.5),
        ([(WINDOW.bind(n=64, window=3), 1)], 0),
        ([(WINDOW.bind(n=64, window=3), 1)], 1.5),
        ([([], 1)], 0.5),
        ([(WINDOW.bind(n=64, window=3), 1)], 0.5, "learning"),
    ],
)
def test_wrong_models_give_one_line(arguments) -> None:
    with pytest.raises(maskdsl.BindError) as error:
        simulate_model(*arguments)
    assert "\n" not in str(error.value)


# Pictures


def test_pictures_of_predictions(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    found = maskdsl.sweep(maskdsl.load("std/longformer"), "h100", n=2048, window=[64, 256], heads=2)
    plots.draw(found, tmp_path / "sweep.png")
    plots.draw(found[0], tmp_path / "one" / "one.png")
    for path in (tmp_path / "sweep.png", tmp_path / "one" / "one.png"):
        with Image.open(path) as picture:
            assert picture.size > (1000, 700)
            assert len(picture.convert("RGB").getcolors(2**24)) > 50
    empty = maskdsl.parse("pattern p over (n) keep q.n < 0").bind(n=256)
    plots.draw(simulate(empty), tmp_path / "empty.png")
    with pytest.raises(maskdsl.BindError, match="no prediction"):
        plots.draw([], tmp_path / "none.png")


def test_what_pictures_show() -> None:
    p = simulate(WINDOW.bind(n=4096, window=256, heads=2).plan(128, 64), device="h100")
    work = plots.row_work(p)
    assert len(work) == 2 * 32 and (np.diff(work) <= 0).all()
    ((intensity, rate),) = plots.roofline_points(p)
    visited = p.tiles["full"] + p.tiles["partial"]
    assert rate == pytest.approx(4 * visited * 128 * 64 * 128 / p.time)
    assert rate < min(989.4e12, intensity * 3.35e12)
    a, b = (simulate(WINDOW.bind(n=n, window=9)) for n in (64, 128))
    assert plots.labels([a, b]) == ["h200, 64 keys", "h200, 128 keys"]


def test_labels_of_choices_are_short() -> None:
    tiles = [((4, 8), (2, 8)), None]
    pattern = maskdsl.load("std/natten2d")
    shape = {"y": 32, "x": 32, "window": [[9, 9]], "stride": [[1, 1]], "dilation": [[1, 1]]}
    found = maskdsl.sweep(pattern, "h100", tiles, **shape, causal=[[False, False]])
    assert sorted(plots.labels(found)) == ["tiles=4x8/2x8", "tiles=searched"]
    both = maskdsl.sweep(pattern, ["h100", "a100"], tiles, **shape, causal=[[False, False]])
    assert "a100, 4x8/2x8" in plots.labels(both)


def test_tables_say_their_order() -> None:
    options = {"n": 4096, "window": range(64, 2048, 64)}
    fast, dense, none = (
        maskdsl.sweep(WINDOW, "h100", least_speedup=n, **options) for n in (None, 3, 1000)
    )
    assert "the fastest first" in fast.table() and len(fast) == 31
    assert "3x or faster, the densest first" in dense.table()
    windows = [p.choice["window"] for p in dense]
    assert windows == sorted(windows, reverse=True) and dense.to_dict()["least_speedup"] == 3
    slower = [p for p in fast if p.choice["window"] == windows[0] + 64]
    assert all(p.speedup < 3 for p in slower)
    assert none.table() == "predicted: nothing is 1000x or faster"


def test_a_plan_is_swept_over_heads_and_features() -> None:
    plan = WINDOW.bind(n=1024, window=64).plan(lanes=64)
    found = maskdsl.sweep(plan, "h100", heads=[1, 8], value_dim=[64, 128])
    assert {(p.heads, p.value_dim) for p in found} == {(1, 64), (1, 128), (8, 64), (8, 128)}
