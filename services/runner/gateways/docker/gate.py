"""The gate: how the agent in a container receives the descriptors that a child would inherit.

It takes one connection, made by the agent before any user code is loaded, and is then removed. What
it passes are the same channel and pipes that other sandboxes have, so calls do not go through the
daemon.
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
        folder.chmod(0o711)  # the container's user enters it, whatever the umask
        self.folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        # Bound through the folder's descriptor: the path of a socket is limited to 107 bytes.
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{place}/{GATE_NAME}"
            self._socket.bind(path)
            Path(path).chmod(0o666)
        finally:
            os.close(place)
        self._socket.listen(1)

    async def hand_over(self, descriptors: Sequence[int]) -> None:
        """Wait for the agent to connect, and send it the descriptors."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        with connection:
            socket.send_fds(connection, [b"\0"], list(descriptors))

    def close(self) -> None:
        """Remove the gate; idempotent."""
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)
