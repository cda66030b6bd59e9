"""Starts egress proxies: one per sandbox, which only knows the hosts of one tenant.

Private package indexes of a tenant are reached through such a proxy as well.
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
    """Return what starts a node's proxy: hosts must be allowed by the deployment and the node."""
    rules = [list(deployment)]
    if network.hosts:
        rules.append(list(network.hosts))
    return partial(_serve, rules)


def proxy_to(hosts: Sequence[str], *, trusted: Sequence[str]) -> tuple[str, Callable[[], None]]:
    """Start a proxy on the loopback interface; return its URL, and a function that ends it.

    It reaches `hosts`, only at public addresses except for those that are `trusted`.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}", _serve([hosts], listener.detach(), trusted=trusted)


def _serve(
    rules: Sequence[Sequence[str]], listener: int, *, trusted: Sequence[str] = ()
) -> Callable[[], None]:
    """Start a proxy on a listening socket; raises OSError. It ends with this process."""
    try:
        # It ends at the end of its stdin, so also if this process is killed.
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
    """Kill the proxy; nobody uses it any more."""
    proxy.kill()
    assert proxy.stdin is not None
    proxy.stdin.close()
    proxy.wait()
