"""The gate: how the agent in a container gets the descriptors that a child would inherit.

One connection, taken by the agent before any code of the user's is read; then the gate is gone.
What it hands over are the very channel and pipes that every other sandbox has: a call goes through
no daemon.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from services.runner.gateways.docker.options import GATE_NAME


class Gate:
    """A socket in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o711, parents=True)
        folder.chmod(0o711)  # the container's user enters it, whatever the umask says
        self.folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        # By the folder's descriptor: the path of a socket has 107 bytes, and a home may have more.
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{place}/{GATE_NAME}"
            self._socket.bind(path)
            Path(path).chmod(0o666)
        finally:
            os.close(place)
        self._socket.listen(1)

    async def hand_over(self, descriptors: Sequence[int]) -> None:
        """Await the agent and give it the descriptors."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        with connection:
            socket.send_fds(connection, [b"\0"], list(descriptors))

    def close(self) -> None:
        """Take the gate away; safe to call twice."""
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)
