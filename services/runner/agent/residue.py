"""What a call may leave behind."""

import _signal
import os
import sys

from .rooms import ROOMS

_WATCHED_SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGALRM, _signal.SIGCHLD)


class Residue:
    """Tells what user code left: a warm interpreter that is not as it was gets replaced.

    Asked after every call, so it asks the C modules: `signal` makes enums, `os.environ` decodes.
    """

    def __init__(self):
        self.last_pid_file = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        self.last_pid = self._last_pid()
        self.started = False  # whether the last call started a process or a thread
        self.threads = len(os.listdir("/proc/self/task"))
        self.cwd = os.getcwd()
        self.environment = dict(os.environ._data)
        self.handlers = [_signal.getsignal(number) for number in _WATCHED_SIGNALS]
        self.blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self.streams = (sys.stdin, sys.stdout, sys.stderr)

    def _last_pid(self):
        # The last process or thread number given out in this PID namespace: unchanged means that
        # nothing was started, at the price of one read instead of a walk through /proc.
        return os.pread(self.last_pid_file, 128, 0).rsplit(b" ", 1)[-1]

    def found(self, worked_ns=None):
        """What is not as it was, after calls that took so long; None where that is not known."""
        last_pid = self._last_pid()
        self.started = last_pid != self.last_pid
        if self.started:
            worked_ns = None  # others worked beside
            self.last_pid = last_pid
            if len(os.listdir("/proc/self/task")) > self.threads:
                return "threads"
            if self._others():
                return "children"
        return self.changed() or ("temporary files" if ROOMS.crowded(worked_ns) else "")

    def changed(self):
        """What is not as it was, of what no call under way changes for itself alone."""
        if os.environ._data != self.environment:
            return "environment"
        if [_signal.getsignal(number) for number in _WATCHED_SIGNALS] != self.handlers:
            return "signal handlers"
        if _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) != self.blocked:
            return "signal mask"
        if _signal.getitimer(_signal.ITIMER_REAL)[0]:
            return "timer"
        try:
            if os.getcwd() != self.cwd:
                return "working directory"
        except OSError:
            return "working directory"
        if (sys.stdin, sys.stdout, sys.stderr) != self.streams:
            return "streams"
        return ""

    def _others(self):
        try:
            os.waitpid(-1, os.WNOHANG)
            return True
        except ChildProcessError:
            pass
        own = os.getpid()
        try:
            names = os.listdir("/proc")
        except OSError:  # no namespace of its own: others' processes are none of its business
            return False
        return any(name.isdigit() and int(name) not in (1, own) for name in names)


def left_running():
    """Whether a process is left of a call's: each comes to this one when its parent ends."""
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if child == 0:
            return True


class Nothing:
    """What a process that ends after its call leaves behind is its parent's to look for."""

    environment = {}
    started = True  # nobody looks: what children used is asked for

    def found(self, worked_ns=None):
        return ""
