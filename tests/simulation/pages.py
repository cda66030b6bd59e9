"""Large pages below what a process holds, of which a world touches most within milliseconds.

By pages of 4 KiB addresses are looked up again and again, twice over where the machine is itself a
guest: an eighth of what a world costs was that.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from pathlib import Path
from typing import Final

_LARGE_BYTES: Final = 2 << 20
_MADV_COLLAPSE: Final = 25  # Linux 6.1; whoever does not know it leaves the pages as they are


def enlarge() -> None:
    """Have what was allocated until now lie in large pages, as far as that can be done."""
    with contextlib.suppress(OSError):
        advise = ctypes.CDLL(None).madvise
        for begin, end in _allocated():
            first, last = -(-begin // _LARGE_BYTES), end // _LARGE_BYTES
            if first < last:
                address = ctypes.c_void_p(first * _LARGE_BYTES)
                size = ctypes.c_size_t((last - first) * _LARGE_BYTES)
                advise(address, size, mmap.MADV_HUGEPAGE)
                advise(address, size, _MADV_COLLAPSE)


def _allocated() -> list[tuple[int, int]]:
    """Give the regions that are this process's own and writable, and no file's or stack."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    own = [each for each in maps if each[1] == "rw-p" and each[4] == "0"]
    regions = [each[0].split("-") for each in own if each[5:] in ([], ["[heap]"])]
    return [(int(begin, 16), int(end, 16)) for begin, end in regions]
