"""Machine code of emitted Gluon modules: run as a process of its own, without the interpreter.

Reads sources as JSON, by name; writes for each its registers, spills and shared memory in bytes,
and for each of its loops over key tiles the opcodes in order.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def compiled(sources: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the process writes."""
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(sources), env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _compile(source: str) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget

    from maskdsl.runtime import resources

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(source)
        module = resources._load(path)
        kernels = [x for x in module.values() if "scale" in getattr(x, "arg_names", ())]
        found = triton.compile(
            resources._as_called(kernels[0], module),
            target=GPUTarget("cuda", 90, 32), options=module["OPTIONS"],
        )  # fmt: skip
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(found.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        text = resources._output(tool, "-c", str(cubin))
    registers, spills, _ = resources._of_cubin(found.asm)
    return {
        "registers": registers, "spills": spills, "shared": found.metadata.shared,
        "loops": _loops(text),
    }  # fmt: skip


def _loops(text: str) -> list[list[str]]:
    """Opcodes of the loops that wait once for products and once for the sum."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = len(code)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?);", line):
            code.append(found[1].strip())
    loops = []
    for at, op in enumerate(code):
        target = re.search(r"BRA.*?(\.L_x_\d+)", op)
        first = labels.get(target[1], at + 1) if target else at + 1
        body = [_opcode(x) for x in code[first : at + 1]]
        if [x for x in body if x.startswith("DEPBAR")] == ["DEPBAR 1", "DEPBAR 0"]:
            loops.append(body)
    return loops


def _opcode(text: str) -> str:
    if waits := re.match(r"WARPGROUP\.DEPBAR\S* gsb0, 0x(\d)", text):
        return f"DEPBAR {waits[1]}"
    return re.split(r"[\s.]", text)[0]


if __name__ == "__main__":
    answer = {name: _compile(source) for name, source in json.load(sys.stdin).items()}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
