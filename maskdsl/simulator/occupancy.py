"""How many programs of a kernel fit one multiprocessor, from registers and shared memory."""

from __future__ import annotations

from maskdsl.errors import BindError
from maskdsl.simulator.cost import CompiledKernel, TileShape
from maskdsl.simulator.devices import Device

STAGES = 3  # walked tiles in flight, as the emitted kernels keep them, fewer where they do not fit
PLAIN_REGISTERS = 64  # of a thread, besides its accumulator and one and a half times its logits
MAX_REGISTERS = 255
MAX_BLOCKS = 16


def resident_programs(
    shape: TileShape, device: Device, compiled: CompiledKernel | None = None
) -> int:
    """Programs that one multiprocessor holds at once, at least 1.

    Raises `BindError` where a compiled kernel does not fit the device.
    """
    if compiled is not None:
        if compiled.shared > device.shared_per_block:
            raise BindError(
                f"the kernel takes {compiled.shared} bytes of shared memory, a block of "
                f"{device.name} has {device.shared_per_block}"
            )
        registers, shared, warps = compiled.registers, compiled.shared, compiled.warps
    else:
        registers, shared, warps = estimated_registers(shape), _shared(shape, device), shape.warps
    by_registers = int(device.registers_per_unit // (registers * 32 * warps))
    by_shared = int(device.shared_per_unit // max(shared, 1))
    return max(1, min(by_registers, by_shared, MAX_BLOCKS))


def estimated_registers(shape: TileShape) -> int:
    """Of a thread of a program whose machine code is not known."""
    threads = 32 * shape.warps
    words = shape.q_lanes * shape.features[1] + 1.5 * shape.pairs
    return min(MAX_REGISTERS, PLAIN_REGISTERS + int(words / threads))


def fits(shape: TileShape, device: Device) -> bool:
    """Whether the tiles and their logits leave room in the shared memory of a block."""
    head, value = shape.features
    numbers = (
        shape.q_lanes * head + shape.kv_lanes * (head + value) + shape.q_lanes * shape.kv_lanes
    )
    return numbers * shape.element_bytes <= device.shared_per_block


def _shared(shape: TileShape, device: Device) -> int:
    """Bytes of the query tile and of as many stages of keys and values as fit."""
    own = shape.q_lanes * shape.token_bytes((1, 0))
    stage = shape.kv_lanes * shape.token_bytes((1, 1))
    stages = max(1, min(STAGES, (device.shared_per_block - own) // stage))
    return own + stages * stage
