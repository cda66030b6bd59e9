"""The seccomp filter, assembled here, since a fresh machine has no libseccomp.

A deny list of calls that nodes do not need and that have a history of sandbox escapes. Denied calls
fail with EPERM, so that libraries which only probe continue. See seccomp(2) and linux/bpf_common.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.runner.domain.network import Reach

_LD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_RET: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL: Final = 0x80000000
_NUMBER: Final = 0  # offsets in struct seccomp_data
_ARCHITECTURE: Final = 4
_ARGUMENT_0: Final = 16
_ARGUMENT_1: Final = 24
_X32: Final = 0x40000000

_CLONE_NEWNS_ANY: Final = 0x7E020080  # NEWNS CGROUP UTS IPC USER PID NET
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_AF_UNIX: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10
_AF_NETLINK: Final = 16
_FAMILIES: Final[Mapping[Reach, tuple[int, ...]]] = {
    Reach.NONE: (),
    Reach.EGRESS: (_AF_INET, _AF_INET6),
    Reach.HOST: (_AF_INET, _AF_INET6, _AF_NETLINK),
}

# Common to both architectures where the generic table is used (numbers from asm-generic).
_X86_64: Final[Mapping[str, int]] = {
    "ptrace": 101, "syslog": 103, "personality": 135, "ustat": 136, "vhangup": 153,
    "modify_ldt": 154, "pivot_root": 155, "sysctl": 156, "adjtimex": 159, "chroot": 161,
    "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167,
    "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172,
    "ioperm": 173, "create_module": 174, "init_module": 175, "delete_module": 176, "quotactl": 179,
    "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "mbind": 237,
    "set_mempolicy": 238, "get_mempolicy": 239, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272, "move_pages": 279,
    "vmsplice": 278, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "kexec_file_load": 320,
    "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "memfd_secret": 447, "set_mempolicy_home_node": 450, "open_tree_attr": 467,
}  # fmt: skip
_AARCH64: Final[Mapping[str, int]] = {
    "lookup_dcookie": 18, "umount2": 39, "mount": 40, "pivot_root": 41, "nfsservctl": 42,
    "chroot": 51, "vhangup": 58, "quotactl": 60, "vmsplice": 75, "acct": 89, "personality": 92,
    "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106,
    "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161,
    "setdomainname": 162, "settimeofday": 170, "adjtimex": 171, "add_key": 217,
    "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225, "mbind": 235,
    "get_mempolicy": 236, "set_mempolicy": 237, "migrate_pages": 238, "move_pages": 239,
    "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264,
    "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270,
    "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "bpf": 280, "userfaultfd": 282,
    "kexec_file_load": 294, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "memfd_secret": 447, "set_mempolicy_home_node": 450, "open_tree_attr": 467,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Machine:
    audit: int
    denied: Mapping[str, int]
    clone: int
    clone3: int
    socket: int
    ioctl: int
    grouping: tuple[int, ...]  # setpgid, setsid


_MACHINES: Final[Mapping[str, _Machine]] = {
    "x86_64": _Machine(
        0xC000003E, _X86_64, clone=56, clone3=435, socket=41, ioctl=16, grouping=(109, 112)
    ),
    "aarch64": _Machine(
        0xC00000B7, _AARCH64, clone=220, clone3=435, socket=198, ioctl=29, grouping=(154, 157)
    ),
}


def build_filter(
    *, machine: str | None = None, namespaced: bool = True, network: Reach = Reach.NONE
) -> bytes:
    """Return the program as the bytes of `struct sock_filter[]`, for bwrap's --seccomp.

    Sockets other than AF_UNIX are refused, except internet ones where a `network` is reached, and
    netlink on the machine's network. Without namespaces (`namespaced=False`) AF_UNIX is refused as
    well, since abstract names would be reachable, and so is leaving the process group, by which the
    sandbox is killed then; socketpair is always allowed.
    """
    shape = _MACHINES.get(machine or platform.machine())
    if shape is None:
        raise ValueError(f"no seccomp filter for {machine or platform.machine()}")
    code = _Program()
    code.load(_ARCHITECTURE)
    code.unless_equal_return(shape.audit, _KILL)
    code.load(_NUMBER)
    if shape.audit == _MACHINES["x86_64"].audit:
        code.when_at_least_return(_X32, _ERRNO | errno.ENOSYS)
    # glibc then falls back to clone, whose flags a filter can check.
    code.when_equal_return(shape.clone3, _ERRNO | errno.ENOSYS)
    for number in sorted(set(shape.denied.values())):
        code.when_equal_return(number, _ERRNO | errno.EPERM)
    if not namespaced:
        for number in shape.grouping:
            code.when_equal_return(number, _ERRNO | errno.EPERM)
    code.when_equal_test(
        shape.clone, _ARGUMENT_0, [(_JSET, _CLONE_NEWNS_ANY)], _ERRNO | errno.EPERM
    )
    code.when_equal_test(
        shape.ioctl,
        _ARGUMENT_1,
        [(_JEQ, _TIOCSTI), (_JEQ, _TIOCLINUX)],
        _ERRNO | errno.EPERM,
    )
    code.when_socket(shape.socket, (_AF_UNIX, *_FAMILIES[network]) if namespaced else ())
    code.give(_ALLOW)
    return code.bytes()


class _Program:
    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        self._instructions.append((_LD, 0, 0, offset))

    def give(self, value: int) -> None:
        self._instructions.append((_RET, 0, 0, value))

    def unless_equal_return(self, value: int, answer: int) -> None:
        self._instructions.append((_JEQ, 1, 0, value))
        self.give(answer)

    def when_equal_return(self, value: int, answer: int) -> None:
        self._instructions.append((_JEQ, 0, 1, value))
        self.give(answer)

    def when_at_least_return(self, value: int, answer: int) -> None:
        self._instructions.append((_JGE, 0, 1, value))
        self.give(answer)

    def when_equal_test(
        self, number: int, argument: int, tests: list[tuple[int, int]], answer: int
    ) -> None:
        """For one call, test the low word of one argument."""
        length = 1 + 2 * len(tests) + 1
        self._instructions.append((_JEQ, 0, length, number))
        self.load(argument)
        for test, value in tests:
            self._instructions.append((test, 0, 1, value))
            self.give(answer)
        self.give(_ALLOW)

    def when_socket(self, number: int, families: Sequence[int]) -> None:
        """Allow a call if its first argument is one of `families`, else refuse it."""
        self._instructions.append((_JEQ, 0, 2 + 2 * len(families), number))
        self.load(_ARGUMENT_0)
        for family in families:
            self.when_equal_return(family, _ALLOW)
        self.give(_ERRNO | errno.EPERM)

    def bytes(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *each) for each in self._instructions)
