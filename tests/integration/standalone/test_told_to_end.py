"""How the process that ships WAL is ended."""

from __future__ import annotations

import signal
import subprocess
import sys

_WAITS = """
import sys
from services.standalone.backup.ending import told_to_end
wait = told_to_end()
print("waits", flush=True)
while not wait(60):
    pass
for _ in range(20_000):  # as long as signals come, it hears them and goes on
    assert wait(0)
sys.stdin.read()  # an interpreter that is going away minds signals again
"""


def test_a_process_that_is_told_to_end_many_times_at_once_ends() -> None:
    """A second signal within the first one's handler was waited for, for ever."""
    command = [sys.executable, "-c", _WAITS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b"waits\n" == process.stdout.readline()
        for number in range(5_000):
            process.send_signal((signal.SIGTERM, signal.SIGINT)[number % 2])
        process.stdin.close()
        assert 0 == process.wait(timeout=30)
