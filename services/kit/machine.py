"""Limits of the machine on a process: raised as far as they go, and reported when too low."""

from __future__ import annotations

import os
import resource
from typing import Final

from services.kit.env import EnvError

_MIB: Final = 1 << 20
# Pools, caches, streams and logs of an idle service take fewer than fifty; each caller one more.
_DESCRIPTORS_MIN: Final = 256
# gRPC, the driver of the database and their pools start about thirty.
_THREADS_MIN: Final = 64
# Addresses, not memory: stacks of threads and arenas are mapped long before they are used.
_ADDRESSES_MIN: Final = 2048 * _MIB


def claim() -> None:
    """Take as many descriptors as there may be; `EnvError` where a service could not work with it.

    It is better not to begin than to fail at some call later, far from what is wrong.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if _is_less(hard, _DESCRIPTORS_MIN):
        raise _too_little("ulimit -n", f"{hard} descriptors", f"{_DESCRIPTORS_MIN}")
    threads, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() != 0 and _is_less(threads, _THREADS_MIN):  # root is not held to it
        raise _too_little("ulimit -u", f"{threads} threads", f"{_THREADS_MIN}")
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if _is_less(addresses, _ADDRESSES_MIN):
        found = f"{addresses // _MIB} MiB of addresses"
        raise _too_little("ulimit -v", found, f"{_ADDRESSES_MIN // _MIB} MiB")


def _is_less(found: int, least: int) -> bool:
    return found != resource.RLIM_INFINITY and found < least


def _too_little(limit: str, found: str, least: str) -> EnvError:
    return EnvError(f"this process may have {found} ({limit}); a service needs at least {least}")
