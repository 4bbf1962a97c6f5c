"""Tables as the text of a standalone file: short ones plainly, others compressed."""

from __future__ import annotations

import base64
import zlib

import numpy as np

from maskdsl.errors import CompileError

MAX_BYTES = 4 << 20  # of all tables, as the file holds them
SHORT = 12  # entries that are written out
LINE_WIDTH = 96


class Store:
    """The tables of one file; equal ones are written once."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._lines: list[list[str]] = []
        self._size = 0
        self.packed = False

    def put(self, data: np.ndarray) -> str:
        """The name of a table. Raises CompileError past MAX_BYTES."""
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._names:
            self._names[key] = name = f"T{len(self._names)}"
            self._lines.append(self._written(name, np.ascontiguousarray(data)))
        return self._names[key]

    def lines(self) -> list[str]:
        return [line for lines in self._lines for line in lines]

    def _written(self, name: str, data: np.ndarray) -> list[str]:
        shape = tuple(int(n) for n in data.shape)
        if data.size <= SHORT:
            values = data.reshape(-1).tolist()
            reshape = f".view{shape}" if len(shape) != 1 else ""
            tensor = f"torch.tensor({values}, dtype=torch.{data.dtype.name}){reshape}"
            return [f"{name} = {tensor}"]
        whole = data.dtype.kind == "i"
        flat = data.reshape(-1)
        # neighbours are alike: differences compress better
        flat = np.diff(flat, prepend=flat.dtype.type(0)) if whole else flat
        packed = base64.b85encode(zlib.compress(flat.tobytes(), 9)).decode()
        self._size += len(packed)
        if self._size > MAX_BYTES:
            raise CompileError(
                f"the tables of this plan take more than {MAX_BYTES >> 20} MiB in a standalone "
                "file: take larger tiles, or a shorter sequence"
            )
        self.packed = True
        texts = [packed[i : i + LINE_WIDTH] for i in range(0, len(packed), LINE_WIDTH)]
        head = f'{name} = unpacked("{data.dtype.name}", {shape}, """'
        return [head, *texts, '""")']
