"""Plans to Triton source: walks, expressions, templates."""

from maskdsl.codegen.backward import BackwardEmission
from maskdsl.codegen.emit import Emission, Emitted, emit
from maskdsl.codegen.spec import Spec
from maskdsl.codegen.walk import walk_tables

__all__ = ["BackwardEmission", "Emission", "Emitted", "Spec", "emit", "walk_tables"]
