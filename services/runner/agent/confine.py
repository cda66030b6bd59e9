"""Drops privileges, before any user code is read."""

import _signal
import _struct as struct
import os
import resource


def apply_limits(header):
    """Lower this process's limits and privileges."""
    for name, value in header.get("rlimits", {}).items():
        number = getattr(resource, "RLIMIT_" + name)
        resource.setrlimit(number, (value, value))
    uid = header.get("uid")
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.umask(0o077)
    if header.get("confine"):
        confine(header["confine"])
    if header.get("filter"):
        import ctypes

        install_filter(ctypes.CDLL(None, use_errno=True), header["filter"])


_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # same on all architectures
_LANDLOCK_READ = 0b1101  # execute, read files, read folders
_LANDLOCK_OF_FILES = 0b1100000000000111  # the rights that a rule may grant on anything but a folder
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG = 22, 38, 1
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36


def confine(spec):
    """Without namespaces: Landlock for files, no capabilities, and the filter.

    Raises OSError if the kernel does not support it; the sandbox then fails to start.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def check(result, what):
        if result < 0:
            raise OSError(ctypes.get_errno(), what)
        return result

    check(libc.prctl(_PR_SET_PDEATHSIG, int(_signal.SIGKILL), 0, 0, 0), "prctl")
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    abi = check(libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "landlock")
    bits = 13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16
    network, scopes = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    attributes = struct.pack("=QQQ", (1 << bits) - 1, network, scopes)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = check(libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "landlock")
    places = [(path, _LANDLOCK_READ) for path in [*spec["read"], "/proc/%d" % os.getpid()]]
    places += [(path, (1 << bits) - 1) for path in spec["write"]]
    for path, rights in places:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            rights &= _LANDLOCK_OF_FILES & ((1 << bits) - 1)
        rule = struct.pack("=Qi", rights, place)
        check(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), "landlock")
        os.close(place)
    check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)
    # Version 3 of the capability structures; all sets empty.
    check(libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6)), "capset")
    install_filter(libc, spec["filter"])


def install_filter(libc, text):
    """Deny system calls irrevocably, in addition to filters already installed."""
    import base64
    import ctypes

    program = base64.b64decode(text)
    filters = ctypes.create_string_buffer(program, len(program))
    shape = struct.pack("@HP", len(program) // 8, ctypes.addressof(filters))
    if libc.prctl(_PR_SET_SECCOMP, 2, shape, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
