"""Resource limits of the process: raised as far as allowed, and reported when too low."""

from __future__ import annotations

import os
import resource
from typing import Final

from services.kit.env import EnvError

_MIB: Final = 1 << 20
# An idle service uses fewer than fifty for pools, caches, streams and logs; each caller one more.
_DESCRIPTORS_MIN: Final = 256
# gRPC, the database driver and their pools start about thirty.
_THREADS_MIN: Final = 64
# Address space, not memory: stacks of threads and arenas are mapped long before they are used.
_ADDRESSES_MIN: Final = 2048 * _MIB


def claim() -> None:
    """Raise the limit of descriptors to its maximum; `EnvError` if a limit is too low.

    Failing to start is better than failing in some later call with no visible cause.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if _is_less(hard, _DESCRIPTORS_MIN):
        raise _too_little("ulimit -n", f"{hard} descriptors", f"{_DESCRIPTORS_MIN}")
    threads, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() != 0 and _is_less(threads, _THREADS_MIN):  # the limit does not apply to root
        raise _too_little("ulimit -u", f"{threads} threads", f"{_THREADS_MIN}")
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if _is_less(addresses, _ADDRESSES_MIN):
        found = f"{addresses // _MIB} MiB of addresses"
        raise _too_little("ulimit -v", found, f"{_ADDRESSES_MIN // _MIB} MiB")


def _is_less(found: int, least: int) -> bool:
    return found != resource.RLIM_INFINITY and found < least


def _too_little(limit: str, found: str, least: str) -> EnvError:
    return EnvError(f"this process may have {found} ({limit}); a service needs at least {least}")
