from __future__ import annotations

import pytest

from services.registry.rpc.peers import peer_of


class _Context:
    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7"),
        ("ipv6:%5B::1%5D:51234", "::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:51234", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::9%5D:1", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:51234", "192.0.2.7"),
        ("unix:", "local"),
        ("unix:/run/qflow/registry.sock", "local"),
        ("ipv4:nonsense", "unknown"),
    ],
)
def test_a_peer_is_its_address_without_what_it_can_vary(peer: str, expected: str) -> None:
    """X51."""
    assert peer_of(_Context(peer)) == expected
