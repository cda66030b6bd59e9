"""The filter, run instruction by instruction as the kernel would."""

from __future__ import annotations

import errno
import struct

import pytest

from services.runner.gateways.sandbox.seccomp import build_filter

ALLOW = 0x7FFF0000
KILL = 0x80000000
X86_64 = 0xC000003E
AARCH64 = 0xC00000B7


def refuse(number: int) -> int:
    return 0x00050000 | number


def decide(program: bytes, number: int, *arguments: int, architecture: int) -> int:
    """A classic BPF machine with the four instructions that the filter uses."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, when_true, when_false, value = instructions[at]
        at += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, value)[0]
            case 0x15:
                at += when_true if accumulator == value else when_false
            case 0x35:
                at += when_true if accumulator >= value else when_false
            case 0x45:
                at += when_true if accumulator & value else when_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(hex(code))


@pytest.mark.parametrize(
    ("machine", "architecture", "calls"),
    [
        (
            "x86_64",
            X86_64,
            {
                "read": (0, ALLOW),
                "mount": (165, refuse(errno.EPERM)),
                "modify_ldt": (154, refuse(errno.EPERM)),
                "memfd_secret": (447, refuse(errno.EPERM)),
                "open_tree_attr": (467, refuse(errno.EPERM)),
                "ptrace": (101, refuse(errno.EPERM)),
                "io_uring_setup": (425, refuse(errno.EPERM)),
                "clone3": (435, refuse(errno.ENOSYS)),
            },
        ),
        (
            "aarch64",
            AARCH64,
            {
                "read": (63, ALLOW),
                "mount": (40, refuse(errno.EPERM)),
                "ptrace": (117, refuse(errno.EPERM)),
                "bpf": (280, refuse(errno.EPERM)),
                "setpgid": (154, ALLOW),  # on the other architecture modify_ldt
                "memfd_secret": (447, refuse(errno.EPERM)),
                "open_tree_attr": (467, refuse(errno.EPERM)),
                "clone3": (435, refuse(errno.ENOSYS)),
            },
        ),
    ],
)
def test_each_architecture_refuses_its_own_numbers(
    machine: str, architecture: int, calls: dict[str, tuple[int, int]]
) -> None:
    """B114."""
    program = build_filter(machine=machine)
    for name, (number, expected) in calls.items():
        assert expected == decide(program, number, architecture=architecture), name


def test_arguments_decide_where_the_number_does_not() -> None:
    program = build_filter(machine="x86_64")
    socket, clone, ioctl = 41, 56, 16

    def answer(number: int, *arguments: int) -> int:
        return decide(program, number, *arguments, architecture=X86_64)

    assert ALLOW == answer(socket, 1)
    for family in (2, 10, 16, 17, 40):
        assert refuse(errno.EPERM) == answer(socket, family)
    assert ALLOW == answer(clone, 0x11)
    assert ALLOW == answer(clone, 0x3D0F00)  # a thread
    assert refuse(errno.EPERM) == answer(clone, 0x10000011)
    assert ALLOW == answer(ioctl, 0, 0x5401)
    assert refuse(errno.EPERM) == answer(ioctl, 0, 0x5412)
    # Bits above 32 must not hide the command.
    assert refuse(errno.EPERM) == answer(ioctl, 0, 0x5412 | 1 << 40)


def test_foreign_architectures_and_the_x32_numbers_are_refused() -> None:
    program = build_filter(machine="x86_64")
    assert KILL == decide(program, 0, architecture=0x40000003)
    assert refuse(errno.ENOSYS) == decide(program, 0x40000000, architecture=X86_64)


def test_without_a_network_namespace_unix_sockets_are_refused_too() -> None:
    program = build_filter(machine="x86_64", namespaced=False)
    assert refuse(errno.EPERM) == decide(program, 41, 1, architecture=X86_64)
    assert ALLOW == decide(program, 53, 1, architecture=X86_64)  # socketpair
    assert refuse(errno.EPERM) == decide(program, 112, architecture=X86_64)  # setsid
    assert ALLOW == decide(build_filter(machine="x86_64"), 112, architecture=X86_64)


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        build_filter(machine="riscv64")
