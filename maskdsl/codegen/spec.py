"""What a kernel is emitted for besides its plan, and the launch settings that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from maskdsl.errors import CompileError

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
# shared memory one block may use, in bytes
SHARED = {
    "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10,
    "sm_100": 227 << 10, "sm_103": 227 << 10, "sm_120": 99 << 10, "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}  # fmt: skip
WARPGROUPS = ("sm_90", "sm_100", "sm_103")  # multiply matrices of shared memory, not of registers
TENSOR_COPIES = ("sm_90", "sm_100", "sm_103", "sm_120")  # load boxes of a tensor by descriptors
PRECISIONS = ("ieee", "tf32")
MAX_DIM = 256


@dataclass(frozen=True)
class Spec:
    """head_dim: of queries and keys; value_dim: of values. dtype: "float16", "bfloat16" or
    "float32".

    target: what it is compiled for. rising: whether the scale is positive, so that it may be folded
    into the exponential.
    num_warps, num_stages: launch settings; 0 takes the rule's. descriptors: whether tiles are
    loaded by tensor descriptors where the target and the plan allow it: tensors must then be
    aligned to 16 bytes in all strides. precision: of float32 products, "ieee" or, on tensor cores
    with 10 bits of mantissa, "tf32". Raises CompileError for what kernels cannot do.
    """

    head_dim: int
    value_dim: int
    dtype: str
    target: str = "sm_90"
    rising: bool = True
    num_warps: int = 0
    num_stages: int = 0
    descriptors: bool = True
    precision: str = "ieee"

    def __post_init__(self) -> None:
        if self.dtype not in BYTES:
            raise CompileError(f"triton kernels take {', '.join(BYTES)}, not {self.dtype}")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise CompileError(f"precision is one of {known}, not {self.precision!r}")
        if self.precision != "ieee" and self.dtype != "float32":
            raise CompileError(f"{self.precision} products are for float32, not {self.dtype}")
        if self.target not in SHARED:
            raise CompileError(f"there is no target '{self.target}' (known: {', '.join(SHARED)})")
        for name, dim in (("head_dim", self.head_dim), ("value_dim", self.value_dim)):
            if not 1 <= dim <= MAX_DIM:
                raise CompileError(f"triton kernels take a {name} of 1 to {MAX_DIM}, not {dim}")

    @property
    def copies_boxes(self) -> bool:
        """Whether tensor descriptors may load this spec's tiles."""
        aligned = all(d * BYTES[self.dtype] % 16 == 0 for d in (self.head_dim, self.value_dim))
        return self.descriptors and self.target in TENSOR_COPIES and aligned

    def settings(self, queries: int, keys: int, direction: str = "forward") -> tuple[int, int]:
        """(warps, pipeline stages) of a kernel for tiles of so many lanes. direction: "forward",
        "dq" or "dkv". Raises CompileError where they do not fit the target.
        """
        dims = max(padded(self.head_dim), padded(self.value_dim))
        home, away = (keys, queries) if direction == "dkv" else (queries, keys)
        large = 128 * 128 if direction == "forward" else 64 * 128
        large = large // 4 if self.dtype == "float32" else large
        warps = 8 if home * max(away, dims) >= large else 4
        stages = self._stages(queries, keys, direction)
        if stages == 0:
            what = "" if direction == "forward" else "the gradients of "
            raise self._too_large(queries, keys, what)
        return self.num_warps or warps, self.num_stages or stages

    def lanes(self, direction: str) -> tuple[int, int]:
        """The most (queries, keys) of a backward kernel's tiles: a program holds gradients and two
        matrices of scores in registers, so that larger tiles spill.
        """
        home, away = (64, 128) if direction == "dq" else (128, 64)
        if self.target not in WARPGROUPS:
            home, away = 64, 64
        if self.dtype == "float32":
            home, away = 32, 32
        if max(padded(self.head_dim), padded(self.value_dim)) > 128:
            home, away = min(home, 64), 32
        queries, keys = (home, away) if direction == "dq" else (away, home)
        while self._stages(queries, keys, direction) == 0 and queries + keys > 32:
            if queries >= keys:
                queries //= 2
            else:
                keys //= 2
        return queries, keys

    def fits(self, queries: int, keys: int, stages: int, direction: str = "forward") -> bool:
        """Whether shared memory suffices for so many pipeline stages."""
        size = BYTES[self.dtype]
        head, value = padded(self.head_dim), padded(self.value_dim)
        held, walked = queries * head, keys * (head + value)
        if self.target.startswith("gfx"):  # products take what is held from registers
            away = queries if direction == "dkv" else keys
            walked = away * (max(head, value) if stages == 1 else head + value)
            return stages * walked * size <= SHARED[self.target]
        if direction != "forward":
            home, away = (queries, keys) if direction == "dq" else (keys, queries)
            held, walked = home * (head + value), away * (head + value)
        return (held + stages * walked + queries * keys) * size <= SHARED[self.target]

    def _stages(self, queries: int, keys: int, direction: str) -> int:
        """Pipeline stages for which shared memory suffices; 0 where it never does."""
        dims = max(padded(self.head_dim), padded(self.value_dim))
        most = 3 if direction == "forward" and (dims < 128 or keys < 128) else 2
        return next((n for n in range(most, 0, -1) if self.fits(queries, keys, n, direction)), 0)

    def _too_large(self, queries: int, keys: int, what: str = "") -> CompileError:
        return CompileError(
            f"{what}tiles of {queries} queries and {keys} keys with head_dim {self.head_dim} do "
            f"not fit the {SHARED[self.target] >> 10} KiB of shared memory of {self.target}: "
            "take smaller"
        )


def padded(dim: int) -> int:
    """The power of two, at least 16, that holds a dimension."""
    return max(16, 1 << (dim - 1).bit_length())
