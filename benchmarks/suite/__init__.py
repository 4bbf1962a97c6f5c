"""The workloads of the GPU benchmark, as data: `workloads.toml`, the inputs they are given, and
their masks as a user of FlexAttention writes them.
"""

from benchmarks.suite.workloads import Workload, load_workloads

__all__ = ["Workload", "load_workloads"]
