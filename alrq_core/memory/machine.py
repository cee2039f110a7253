"""What the machine offers: devices, compute types, memory in use."""

import ctypes
import gc
import platform
import resource
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from alrq_core.memory.cores import usable_cores

# Best of so many matrix products of each type, in turn.
MATMUL_REPEATS = 8
# bfloat16 is chosen where it takes less than this part of the time, so that noise does not decide.
BFLOAT16_GAIN = 0.85


def found_devices() -> tuple[str, ...]:
    """Return the types of device that torch sees on this machine, the fastest first."""
    accelerators = (("cuda", torch.cuda.is_available()), ("mps", torch.mps.is_available()))
    return (*(name for name, found in accelerators if found), "cpu")


def pick_device(name: str | None = None) -> torch.device:
    """Return the named device, or the fastest that torch sees.

    Raises:
        ValueError: There is none of that name.
    """
    found = found_devices()
    if name is not None and name not in found:
        raise ValueError(
            f"`--device` must be one that this machine has ({', '.join(found)}), got {name!r}. "
            "Use auto, or a machine with one."
        )
    return torch.device(name or found[0])


def pick_compute_dtype(device: torch.device, cpu_dtype: str | None = None) -> torch.dtype:
    """Return the type of the matrix products on a device.

    Args:
        device: A CUDA GPU computes in bfloat16 where it has it, else in float16; MPS in float32.
            Of a GPU that is not here, to plan for it, bfloat16 is expected.
        cpu_dtype: Name of the type to use on a CPU; None for `fastest_cpu_dtype`.
    """
    if device.type == "cuda":
        lacks = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False)
        return torch.float16 if lacks else torch.bfloat16
    if device.type == "mps":
        return torch.float32
    dtype: torch.dtype = getattr(torch, cpu_dtype or fastest_cpu_dtype())
    return dtype


@lru_cache(maxsize=1)
def fastest_cpu_dtype() -> str:
    """Return `bfloat16` where the processor multiplies faster in it, else `float32`.

    Having the instructions is not enough: an Emerald Rapids Xeon whose virtual machine hides AMX
    takes twice as long in bfloat16 as in float32.
    """
    if not _cpu_has_bfloat16():
        return "float32"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {"float32": float("inf"), "bfloat16": float("inf")}
    for _ in range(MATMUL_REPEATS):
        for name in seconds:
            seconds[name] = min(seconds[name], _matmul_seconds(getattr(torch, name)))
    torch.set_num_threads(threads)
    faster = seconds["bfloat16"] < BFLOAT16_GAIN * seconds["float32"]
    return "bfloat16" if faster else "float32"


def _matmul_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    started = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - started


def _cpu_has_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        return False
    text = flags.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in text or "amx_bf16" in text


def give_back_memory() -> None:
    """Give freed memory back to the system, where its C library does so (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether a device had no room for a tensor. MPS raises no error of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "MPS backend out of memory" in str(error)
    )


def free_device_memory(device: torch.device) -> None:
    """Let go of what no tensor uses any more, so that other processes and shapes have it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the highest memory, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    if device.type == "mps":
        torch.mps.empty_cache()
        return
    # What earlier trials freed would else count for this one.
    give_back_memory()
    try:
        # 5 resets the high-water mark of resident memory (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory since the last reset: the device's, or the process's resident.

    MPS keeps no highest value: there it is what the driver holds now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_machine() -> dict[str, object]:
    """Return what a reader of the results needs to know about the machine."""
    device = pick_device()
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "compute_dtype": str(pick_compute_dtype(device)).removeprefix("torch."),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """Return what the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
