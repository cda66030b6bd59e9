"""What a call may leave behind."""

import _signal
import os
import sys

from .rooms import ROOMS

_WATCHED_SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGALRM, _signal.SIGCHLD)


class Residue:
    """Detects what user code left: an interpreter that is not as before gets replaced.

    Runs after every call, so it uses the C modules: `signal` creates enums, `os.environ` decodes.
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
        # The last pid or thread id assigned in this PID namespace: if unchanged, nothing was
        # started. That is one read instead of a walk through /proc.
        return os.pread(self.last_pid_file, 128, 0).rsplit(b" ", 1)[-1]

    def found(self, worked_ns=None):
        """Return what has changed, or ""; `worked_ns` is how long calls took, None if unknown."""
        last_pid = self._last_pid()
        self.started = last_pid != self.last_pid
        if self.started:
            worked_ns = None  # other processes or threads worked, too
            self.last_pid = last_pid
            if len(os.listdir("/proc/self/task")) > self.threads:
                return "threads"
            if self._others():
                return "children"
        return self.changed() or ("temporary files" if ROOMS.crowded(worked_ns) else "")

    def changed(self):
        """Return what has changed of the state that is common to all concurrent calls, or ""."""
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
        except OSError:  # without a PID namespace, other processes are not its own
            return False
        return any(name.isdigit() and int(name) not in (1, own) for name in names)


def left_running():
    """Return whether a process of a call is left: orphans are reparented to this process."""
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if child == 0:
            return True


class Nothing:
    """Checks nothing: this process ends after its call, and its parent looks for leftovers."""

    environment = {}
    started = True  # unknown, so that usage of children is counted

    def found(self, worked_ns=None):
        return ""
