"""Measures the bandwidth of a card's memory by copying within it; it limits a decoder that writes one token at a time.

This needs NVIDIA's driver, but no toolkit.

Source: CUDA Driver API (`cuda.h`): primary contexts, memory, events.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from bimedix_edge.hardware.nvidia import Call, DriverError, open_driver

__all__ = ["copy_bandwidth"]

# far more than a card's caches hold
_BLOCK_BYTES = 256 << 20
_COPIES = 20
_ROUNDS = 5


def copy_bandwidth(index: int = 0) -> float | None:
    """Return how many bytes per second a card reads and writes together, measured now.

    A copy reads each byte once and writes it once, and both count. Reading alone, as for weights, is about as fast.

    Args:
        index: Number of the card, as the driver counts the cards that this process may see.

    Returns:
        The best of five rounds; None if there is no such card, or no room for two blocks of 256 MB.
    """
    try:
        with _blocks(index) as (call, source, target):
            return max(_round(call, source, target) for _ in range(_ROUNDS))
    except DriverError:
        return None


@contextlib.contextmanager
def _blocks(index: int) -> Iterator[tuple[Call, ctypes.c_uint64, ctypes.c_uint64]]:
    """Yield two blocks of a card's memory, in the context that the whole process shares."""
    call, device, context = open_driver(), ctypes.c_int(), ctypes.c_void_p()
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    with contextlib.ExitStack() as stack:
        stack.callback(call, "cuDevicePrimaryCtxRelease_v2", device)
        call("cuCtxPushCurrent_v2", context)
        stack.callback(call, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        blocks = ctypes.c_uint64(), ctypes.c_uint64()
        for block in blocks:
            call("cuMemAlloc_v2", ctypes.byref(block), ctypes.c_size_t(_BLOCK_BYTES))
            stack.callback(call, "cuMemFree_v2", block)
        yield call, *blocks


def _round(call: Call, source: ctypes.c_uint64, target: ctypes.c_uint64) -> float:
    """Copy 20 times and return the bytes read and written per second, by the card's own clock."""
    start, end = ctypes.c_void_p(), ctypes.c_void_p()
    for event in (start, end):
        call("cuEventCreate", ctypes.byref(event), 0)
    call("cuEventRecord", start, None)
    for _ in range(_COPIES):
        call("cuMemcpyDtoDAsync_v2", target, source, ctypes.c_size_t(_BLOCK_BYTES), None)
    call("cuEventRecord", end, None)
    call("cuEventSynchronize", end)
    milliseconds = ctypes.c_float()
    call("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
    for event in (start, end):
        call("cuEventDestroy_v2", event)
    return 2 * _COPIES * _BLOCK_BYTES / (milliseconds.value * 1e-3)
