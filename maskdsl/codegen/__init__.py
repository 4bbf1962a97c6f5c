"""Plans to Triton source: walks, expressions, templates."""

from maskdsl.codegen.backward import BackwardEmission
from maskdsl.codegen.emit import Emission, Emitted, emit
from maskdsl.codegen.spec import Spec

__all__ = ["BackwardEmission", "Emission", "Emitted", "Spec", "emit"]
