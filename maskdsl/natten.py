"""A drop-in for NATTEN's functions: `from maskdsl.natten import na1d, na2d, na3d`."""

from maskdsl.integrations.natten import na1d, na2d, na3d

__all__ = ["na1d", "na2d", "na3d"]
