"""What a device can do, and how much of its memory a run has taken."""

from __future__ import annotations

import resource
import sys
import time
from functools import cache

import torch
from torch import Tensor

GIB = 1024**3
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}
"""Of 16-bit matrix products without sparsity, by the maker's data sheets (SXM)."""


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second that matrix products of this dtype or float32 reach here.

    Of a known GPU in 16 bits the data sheet's number; else measured, on the threads in use.
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for known, tflops in PEAK_TFLOPS.items():
            if known in name:
                return tflops * 1e12
    size = 4096 if device.type == "cuda" else 512
    # The head computes in float32 always, which on a CPU may be the faster of the two.
    matrices = [torch.ones(size, size, device=device, dtype=t) for t in {dtype, torch.float32}]
    best = min(_seconds(one) for one in matrices for _ in range(5))
    return 2.0 * size**3 / best


def peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has held, GiB: the GPU's where there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _seconds(matrix: Tensor) -> float:
    start = time.perf_counter()
    product = matrix @ matrix
    if matrix.is_cuda:
        torch.cuda.synchronize()
    del product
    return time.perf_counter() - start
