"""Starts the proxy that is a sandbox's way out, one for each: it knows one tenant's hosts alone.

So does the one by which a tenant's own package indexes are asked.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from services.runner.domain.network import Network
from services.runner.gateways.sandbox.port import ServeEgress

_PROGRAM: Final = Path(__file__).with_name("egress_proxy.py")


def egress_for(deployment: Sequence[str], network: Network) -> ServeEgress:
    """Give what serves a node's way out: hosts that the deployment allows, and the node names."""
    rules = [list(deployment)]
    if network.hosts:
        rules.append(list(network.hosts))
    return partial(_serve, rules)


def proxy_to(hosts: Sequence[str], *, trusted: Sequence[str]) -> tuple[str, Callable[[], None]]:
    """Start a proxy on this machine's loopback; gives its address and what ends it.

    It reaches `hosts`, by public addresses alone but for those that are `trusted`.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}", _serve([hosts], listener.detach(), trusted=trusted)


def _serve(
    rules: Sequence[Sequence[str]], listener: int, *, trusted: Sequence[str] = ()
) -> Callable[[], None]:
    """Start a proxy on a listening socket; raises OSError. It ends with this process at last."""
    try:
        # Its stdin tells it the end, also that of a runner which was killed.
        proxy = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", str(_PROGRAM), str(listener)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(listener,),
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(listener)
    assert proxy.stdin is not None
    try:
        proxy.stdin.write(json.dumps({"rules": rules, "trusted": trusted}).encode() + b"\n")
        proxy.stdin.flush()
    except OSError:
        _end(proxy)
        raise
    return partial(_end, proxy)


def _end(proxy: subprocess.Popen[bytes]) -> None:
    """End it at once: nobody is at the other side any more."""
    proxy.kill()
    assert proxy.stdin is not None
    proxy.stdin.close()
    proxy.wait()
