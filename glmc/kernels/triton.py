"""How Triton kernels are started: on a device, in Triton's interpreter on the CPU, or only noted, to be built for elsewhere.

The host code of a kernel runs the same way in all three, so what is built ahead is what will be asked for. Sizes that a
model fixes are constants of a kernel; rows, tokens and slots are integers on which nothing is specialised.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from glmc.errors import UsageError
from glmc.kernels import built, driver, has, holding, load

VERSION: str = triton.__version__
_TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64",
          torch.int32: "i32", torch.bool: "i1", torch.uint8: "u8"}


@dataclass(frozen=True)
class Launch:
    """One distinct kernel as it was asked for. `signature`: parameter -> Triton type, "constexpr" for those in `constants`.

    aligned: the tensors that begin at a multiple of 16 bytes, which lets the compiler load 16 bytes at once.
    """

    kernel: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def facts(self) -> dict[str, Any]:
        """What tells this launch from others, as JSON. It holds for every version of Triton: the binary is the same work."""
        return {"kernel": f"{self.kernel.fn.__module__}.{self.name}", "source": _source(self.kernel.fn),
                "signature": dict(self.signature), "constants": dict(self.constants), "aligned": list(self.aligned),
                "warps": self.warps, "stages": self.stages}

    def parameters(self) -> list[str]:
        """The Triton types of the parameters that are not constants."""
        return [kind for _, kind in self.signature if kind != "constexpr"]

    @property
    def digest(self) -> str:
        """Sixteen hex digits of `facts`."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:16]

    def source(self) -> ASTSource:
        """The kernel at its types and constants."""
        attributes = {(place,): [["tt.divisibility", 16]] for place, (name, _) in enumerate(self.signature)
                      if name in self.aligned}
        return ASTSource(self.kernel, dict(self.signature), dict(self.constants), attributes)


@functools.cache
def _source(function: Callable) -> str:
    """Digest (hex) of the text of a kernel's function, of the kernels of ours that it calls, and of constants that it reads."""
    total = hashlib.sha256(inspect.getsource(function).encode())
    for name in sorted(set(function.__code__.co_names)):
        value = function.__globals__.get(name)
        if isinstance(value, JITFunction) and not value.fn.__module__.startswith("triton."):
            total.update(_source(value.fn).encode())
        elif isinstance(value, tl.constexpr):
            total.update(f"{name}={value.value!r}".encode())
    return total.hexdigest()


def source_of(kernel: str) -> str | None:
    """The `source` of "glmc.kernels.OP.triton.NAME" as this version of glmc has it; None where it has none."""
    op, name = kernel.split(".")[2::2]
    found = getattr(load(op, "triton"), name, None) if has(op, "triton") else None
    return _source(found.fn) if isinstance(found, JITFunction) else None


_NOTES: ContextVar[dict[Launch, None] | None] = ContextVar("notes", default=None)
_INTERPRETED: ContextVar[bool] = ContextVar("interpreted", default=False)
Find = Callable[[str, str], tuple[Path, Path] | None]
"""(digest, name of the kernel) -> description and binary of a launch that was built ahead."""
Start = Callable[[tuple[int, ...], list[Any]], None]
"""(grid of three, the values of the parameters that are not constants) starts a kernel."""
Opened = dict[Launch, Start | None]
_SEALED: ContextVar[tuple[Find, Opened] | None] = ContextVar("sealed", default=None)


@contextlib.contextmanager
def noted() -> Iterator[dict[Launch, None]]:
    """Meanwhile launches are noted and not made, so that a kernel's host code runs on meta tensors. The notes in order."""
    notes: dict[Launch, None] = {}
    with holding(_NOTES, notes):
        yield notes


def interpreted() -> AbstractContextManager:
    """Meanwhile kernels run on CPU tensors in Triton's interpreter: slow, and the same arithmetic."""
    return holding(_INTERPRETED, True)


def sealed(find: Find, opened: Opened) -> AbstractContextManager:
    """Meanwhile launches that `find` knows start what was built ahead; the others are compiled by Triton as they come.

    opened: what was found before, added to.
    """
    return holding(_SEALED, (find, opened))


def launch(kernel: JITFunction, grid: tuple[int, ...], *arguments: Any, warps: int = 4, stages: int = 2, **constants: Any,
           ) -> None:
    """Start `kernel` over `grid`; constants are its `tl.constexpr` parameters. Raises UsageError for tensors on no device."""
    notes = _NOTES.get()
    if notes is not None:
        notes.setdefault(_asked(kernel, arguments, constants, warps, stages))
        return
    if _INTERPRETED.get():
        _interpret(kernel, grid, arguments, constants)
        return
    if any(isinstance(a, torch.Tensor) and a.device.type == "cpu" for a in arguments):
        raise UsageError("a Triton kernel runs on a GPU", field=kernel.fn.__name__, found="tensors on the CPU")
    known = _SEALED.get()
    if known is not None:
        asked = _asked(kernel, arguments, constants, warps, stages)
        start = _opened(*known, asked)
        if start is not None:
            given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
            start((*grid, 1, 1)[:3], [given[name] for name, kind in asked.signature if kind != "constexpr"])
            return
    kernel[grid](*arguments, num_warps=warps, num_stages=stages, **constants)


def _opened(find: Find, opened: Opened, asked: Launch) -> Start | None:
    if asked not in opened:
        files = find(asked.digest, asked.name)
        opened[asked] = files and _start_of(asked, *files)
    return opened[asked]


def _start_of(asked: Launch, description: Path, binary: Path) -> Start:
    """What starts a kernel that was built ahead: NVIDIA's driver, or on AMD Triton's own launcher."""
    if binary.suffix == ".cubin":
        return driver.Kernel(binary.read_bytes(), json.loads(description.read_bytes()), asked.parameters())
    made = CompiledKernel(asked.source(), {f.name: str(f) for f in (description, binary)}, asked.digest)

    def start(grid: tuple[int, ...], values: list[Any]) -> None:
        given = iter(values)
        made[grid](*(None if kind == "constexpr" else next(given) for _, kind in asked.signature))

    return start


def _asked(kernel: JITFunction, arguments: tuple, constants: dict[str, Any], warps: int, stages: int) -> Launch:
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    signature, fixed, aligned = [], [], []
    for parameter in kernel.params:
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            signature.append((parameter.name, "constexpr"))
            fixed.append((parameter.name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((parameter.name, f"*{_TYPES[value.dtype]}"))
            if _start(value) % 16 == 0:
                aligned.append(parameter.name)
        else:
            signature.append((parameter.name, "fp32" if isinstance(value, float) else "i32"))
    return Launch(kernel, tuple(signature), tuple(fixed), tuple(aligned), warps, stages)


def _start(tensor: torch.Tensor) -> int:
    """Where a tensor begins, in bytes; on the meta device from the start of its memory, which torch aligns."""
    return int(tensor.storage_offset()) * tensor.element_size() if tensor.is_meta else tensor.data_ptr()


def _interpret(kernel: JITFunction, grid: tuple[int, ...], arguments: tuple, constants: dict[str, Any]) -> None:
    """Run a kernel on the CPU. The interpreter cuts bfloat16 off instead of rounding, and multiplies its bits: such tensors
    are float32 meanwhile, and rounded once at the end. What was not written keeps its bits: a storage may hold other things,
    such as codes, and of those some would be signalling NaN."""
    wide: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def widened(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.bfloat16:
            return value
        storage = value.untyped_storage()
        whole = value.as_strided((storage.nbytes() // 2,), (1,), 0)
        wide.setdefault(storage.data_ptr(), (whole, whole.float()))
        return wide[storage.data_ptr()][1].as_strided(value.shape, value.stride(), value.storage_offset())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's word for infinities, which a GPU makes silently
        _interpreted(kernel)[grid](*map(widened, arguments), **constants)
    for narrow, copy in wide.values():
        kept = copy.view(torch.int32) == narrow.float().view(torch.int32)
        narrow.copy_(torch.where(kept, narrow, copy.to(torch.bfloat16)))


class _Language(types.ModuleType):
    """`triton.language` for the interpreter, which only knows kernels that were read while TRITON_INTERPRET was set."""

    def __getattr__(self, name: str) -> Any:
        return _ready(getattr(tl, name))


def _ready(value: Any) -> Any:
    """A kernel as an interpreted one; the language by its stand-in; anything else as it is."""
    if value is tl:
        return _Language(tl.__name__)
    return _interpreted(value) if isinstance(value, JITFunction) else value


_COPIES: dict[int, InterpretedFunction] = {}
"""By identity: a kernel's own hash reads the language, which the interpreter changes while it runs."""


def _interpreted(kernel: JITFunction) -> InterpretedFunction:
    """The kernel for the interpreter, made once."""
    if id(kernel) not in _COPIES:
        _COPIES[id(kernel)] = _copied(kernel.fn)
    return _COPIES[id(kernel)]


def _copied(function: Any) -> InterpretedFunction:
    """A copy of a kernel's function in which the names that it uses mean interpreted kernels.

    How Triton's own reductions combine (names with an underscore) the interpreter knows by identity. It changes the two
    modules of the language that a kernel names, and changes back those that the outermost one does.
    """
    used = {name: _ready(function.__globals__[name]) for name in function.__code__.co_names
            if name in function.__globals__ and not (name.startswith("_") and function.__module__.startswith("triton."))}
    copy = types.FunctionType(function.__code__, {**function.__globals__, **used, "_language": tl, "_core": tl.core},
                              function.__name__, function.__defaults__, function.__closure__)
    copy.__annotations__, copy.__module__, copy.__qualname__ = (
        function.__annotations__, function.__module__, function.__qualname__)
    return InterpretedFunction(copy)


def power(size: int) -> int:
    """The least power of two that is not below `size`."""
    return triton.next_power_of_2(size)


def blocks(size: int, each: int) -> int:
    """How many blocks of `each` cover `size`."""
    return triton.cdiv(size, each)


def warps_for(elements: int) -> int:
    """Warps for a program that holds so many elements: sixteen a thread, at most sixteen warps."""
    return min(max(power(elements) // 512, 1), 16)


def rows_of(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x [..., H] as rows [R, H], and the distance from one to the next; a copy only where no one distance fits them all."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    return rows, int(rows.stride(0)) if rows.shape[0] > 1 else int(rows.shape[1])


Gpu = tuple[str, int | str, int]
"""A GPU as Triton names it: "cuda" or "hip", the architecture, and the lanes of a warp."""


def build(asked: Launch, gpu: Gpu, cache_folder: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """Compile a launch for `gpu`, which need not be here: the binary, Triton's description of it, and what it uses.

    The last holds registers a thread, bytes of shared memory a program and bytes of registers that were spilled.
    """
    with triton.knobs.cache.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(io.StringIO()) as said:
        triton.knobs.cache.dir, triton.knobs.nvidia.dump_ptxas_log = str(cache_folder), True
        made = triton.compile(asked.source(), GPUTarget(*gpu), {"num_warps": asked.warps, "num_stages": asked.stages})
    binary = made.asm["cubin" if gpu[0] == "cuda" else "hsaco"]
    built.check_plain(asked.name, asked.parameters(), made)
    described = {k: v for k, v in json.loads(json.dumps(made.metadata._asdict(), default=vars)).items()
                 if not (isinstance(v, str) and v.startswith("/")) and k != "extern_libs"}
    used = built.used_on_nvidia(said.getvalue()) if gpu[0] == "cuda" else built.used_on_amd(made.asm["amdgcn"])
    return binary, described, {**used, "shared_bytes": described["shared"]}


def assembler(gpu: Gpu) -> str | None:
    """The CUDA version of the assembler that `build` uses, "12.8"; None for AMD."""
    return _ptxas(int(gpu[1])).version if gpu[0] == "cuda" else None


def _ptxas(arch: int) -> Any:
    return triton.knobs.nvidia.ptxas_blackwell if arch >= 100 else triton.knobs.nvidia.ptxas
