"""Typed IR to plans: which tiles are empty, full or partial, and how to walk them."""

from maskdsl.planner.build import TilesLike, make_plan, plain_plan
from maskdsl.planner.coarse import Vote
from maskdsl.planner.layout import Candidate, Cost, Layout, work
from maskdsl.planner.plan import HeadClass, Plan
from maskdsl.planner.tiles import Grid, Tile

__all__ = [
    "Candidate",
    "Cost",
    "Grid",
    "HeadClass",
    "Layout",
    "Plan",
    "Tile",
    "TilesLike",
    "Vote",
    "make_plan",
    "plain_plan",
    "work",
]
