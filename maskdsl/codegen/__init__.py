"""Plans to Triton source: walks, expressions, templates."""

from maskdsl.codegen.emit import Emission, Emitted, emit
from maskdsl.codegen.gradients import GradientEmission
from maskdsl.codegen.overlap import OverlapEmission
from maskdsl.codegen.spec import Spec

__all__ = ["Emission", "Emitted", "GradientEmission", "OverlapEmission", "Spec", "emit"]
