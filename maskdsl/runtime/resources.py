"""What a kernel costs, from its machine code: compiled ahead of time, no GPU needed.

Compilation runs in a process of its own, without the interpreter, however triton is loaded in this
one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskdsl.codegen import Emitted
from maskdsl.errors import CompileError
from maskdsl.runtime.machine_code import Code, read_amdgcn, read_sass

SECONDS = 600  # for one process of compilations


@dataclass(frozen=True)
class Resources:
    """registers: of a thread, AMD's accumulation registers included. spills: bytes of local memory
    of a thread (AMD: scratch). shared: bytes of shared memory of a block (AMD: LDS).

    instructions: opcode to count in the machine code; `MUFU` is counted by function (`MUFU.EX2`).
    loops: kernel name to its innermost loops with matrix products, in order of address, each an
    opcode to its count in one iteration (`loops["causal_dq"][0]["HGMMA"]`).
    Of a module with several kernels: the most that one of them takes, all their instructions, and
    the loops of each, in the module's order.
    """

    registers: int
    spills: int
    shared: int
    instructions: Mapping[str, int]
    loops: Mapping[str, tuple[Mapping[str, int], ...]]


def resources(kernel: str | Emitted, target: str = "sm_90") -> Resources:
    """Resources of an emitted module on a target such as `sm_90`. Raises CompileError."""
    return resources_many([(kernel, target)])[0]


def resources_many(jobs: Sequence[tuple[str | Emitted, str]]) -> list[Resources]:
    """Resources of several (kernel, target), compiled in one process. Raises CompileError for the
    first that fails.
    """
    for _, target in jobs:
        if not re.fullmatch(r"sm_\d+|gfx[0-9a-f]+", target):
            raise CompileError(f"there is no target '{target}' (such as sm_90 or gfx942)")
    texts = [
        {"source": k.source if isinstance(k, Emitted) else k, "target": target}
        for k, target in jobs
    ]
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        p for p in (package, environment.get("PYTHONPATH", "")) if p
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "maskdsl.runtime.resources"],
            input=json.dumps(texts), capture_output=True, text=True, env=environment,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"compilation took more than {SECONDS} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["the compiler stopped"]
        raise CompileError(f"triton could not compile the kernel: {lines[-1][:300]}")
    found = json.loads(done.stdout.splitlines()[-1])
    for (_, target), one in zip(jobs, found, strict=True):
        if "error" in one:
            raise CompileError(f"triton could not compile the kernel for {target}: {one['error']}")
    loops = [{kernel: tuple(x) for kernel, x in one.pop("loops").items()} for one in found]
    return [Resources(**one, loops=x) for one, x in zip(found, loops, strict=True)]


# in the process that compiles


def main() -> None:
    """Jobs as JSON on standard input, resources as one line of JSON on standard output."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for i, job in enumerate(json.load(sys.stdin)):
            path = Path(folder) / f"kernel_{i}.py"
            path.write_text(job["source"], encoding="utf-8")
            try:
                found.append(asdict(together(_compile(path, job["target"]))))
            except Exception as error:  # whatever triton raises is the job's answer
                lines = str(error).strip().splitlines() or [type(error).__name__]
                found.append({"error": lines[-1][:300]})
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def together(kernels: Sequence[Resources]) -> Resources:
    """Of several kernels: the most that one of them takes, and all their instructions."""
    counts: Counter[str] = Counter()
    for one in kernels:
        counts.update(one.instructions)
    return Resources(
        max(one.registers for one in kernels),
        max(one.spills for one in kernels),
        max(one.shared for one in kernels),
        dict(sorted(counts.items())),
        {kernel: loops for one in kernels for kernel, loops in one.loops.items()},
    )


def _compile(path: Path, target: str) -> list[Resources]:
    """Of each kernel of a module."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    module = _load(path)
    if target.startswith("sm_"):
        machine = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    else:
        machine = GPUTarget("hip", target, 64)
    functions = [x for x in module.values() if isinstance(x, JITFunction)]
    found = []
    for kernel in (f for f in functions if "scale" in f.arg_names):
        source = _as_called(kernel, module)
        compiled = triton.compile(source, target=machine, options=module["OPTIONS"])
        shared = compiled.metadata.shared
        read = _of_cubin if "cubin" in compiled.asm else _of_amdgcn
        registers, spills, code = read(compiled.asm)
        loops = {kernel.__name__: code.loops()}
        found.append(Resources(registers, spills, shared, code.counts(), loops))
    return found


def _load(path: Path) -> dict[str, Any]:
    module: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module)
    return module


def _as_called(kernel: Any, module: dict[str, Any]) -> Any:
    """The kernel with the types that a call with aligned, contiguous tensors gives it."""
    import triton.language as tl
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.runtime.jit import JITFunction

    source = GluonASTSource if kernel.is_gluon() else ASTSource
    text = "\n".join(x.src for x in module.values() if isinstance(x, JITFunction))
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    aligned: dict[Any, Any] = {}
    sixteen = [["tt.divisibility", 16]]
    for i, name in enumerate(kernel.arg_names):
        if name in module["TYPES"]:
            signature[name] = module["TYPES"][name]
            if signature[name].startswith("*"):
                aligned[(i,)] = sixteen
        elif name == "OFFSETS":
            signature[name] = "constexpr"
            constants[name] = tl.int32
        elif name == "scale":
            signature[name] = "fp32"
        elif name.endswith(("_strides", "_sizes")):
            read = re.findall(rf"\b{name}\[(\d+)\]", text)
            rank = 1 + max(map(int, read), default=0)
            tensor = name.removesuffix("_strides")
            of_tensor = f"{tensor}_ptr" in module["TYPES"]
            types = ["i32"] * rank
            if of_tensor:
                types[-1] = "constexpr"
                constants[(i, rank - 1)] = 1
                dim = "HEAD_DIM" if tensor in ("q", "k", "dq", "dk") else "VALUE_DIM"
                if dim not in module or module[dim].value % 16 == 0:
                    aligned |= {(i, j): sixteen for j in range(rank - 1)}
            signature[name] = tuple(types)
        else:
            signature[name] = "i32"
    return source(kernel, signature, constants, aligned)


def _of_cubin(asm: Mapping[str, Any]) -> tuple[int, int, Code]:
    """(registers, spills, code)"""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    numbers = {word: int(n) for word, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], read_sass(code)


def _of_amdgcn(asm: Mapping[str, Any]) -> tuple[int, int, Code]:
    """As `_of_cubin`."""
    text = asm["amdgcn"]
    of_kernel = re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text)
    numbers = {word: int(n) for word, n in of_kernel}
    return numbers["vgpr_count"], numbers["private_segment_fixed_size"], read_amdgcn(text)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
