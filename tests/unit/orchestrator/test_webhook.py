"""Where events are posted to, how they are signed, when they are tried again."""

from __future__ import annotations

import base64
import hashlib
import hmac
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.web_address import Refused, check_address, check_url
from services.orchestrator.domain import webhook

_ID = UUID(int=5)
_KEY = b"k" * 32

PRIVATE = [
    *("127.0.0.1", "127.255.0.9", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3", "224.0.0.1"),
    *("239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.9", "192.88.99.1", "::1", "::", "fe80::1", "fc00::1", "fd12::1"),
    *("ff02::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::7f00:1"),
    *("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:0:1::1", "2001:db8::1"),
    *("100::1", "3fff::1", "2001:2::1", "fe80::1%1", "5f00::1", "2001:10::1"),
    "2a00::1%1",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_what_is_not_public_is_not_called(text: str) -> None:
    """X27."""
    with pytest.raises(Refused):
        check_address(ip_address(text), loopback=False)


@pytest.mark.parametrize("text", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00::1"])
def test_what_is_public_is_called(text: str) -> None:
    check_address(ip_address(text), loopback=False)


@pytest.mark.parametrize(
    ("url", "called"),
    [
        *(("http://pypi.corp:8080/simple/", True), ("https://10.0.0.7:8443/simple/", True)),
        *(("http://pypi.corp/simple/", False), ("http://other.corp:8080/simple/", False)),
        *(("http://u:p@pypi.corp:8080/", False), ("ftp://pypi.corp:8080/", False)),
    ],
)
def test_hosts_that_a_deployment_trusts_may_be_private_and_plain(url: str, *, called: bool) -> None:
    """X27: by host and port, and by nothing else."""
    hosts = {("pypi.corp", 8080), ("10.0.0.7", 8443)}
    with nullcontext() if called else pytest.raises(Refused):
        check_url(url, loopback=False, trusted=lambda host, port: (host, port) in hosts)


def test_a_deployment_may_allow_its_own_machine_and_nothing_else() -> None:
    for text in PRIVATE:
        address = ip_address(text)
        if address.is_loopback:
            check_address(address, loopback=True)
        else:
            with pytest.raises(Refused):
                check_address(address, loopback=True)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com/", "ftp://example.com/", "example.com", "//example.com/", "https:///x"),
        *("https://127.0.0.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://10.1/"),
        *("https://2130706433/", "https://0x7f000001/", "https://0x7f.1/", "https://0177.0.0.1/"),
        *("https://127.1/", "https://1.2.3.4.5/", "https://256.1.1.1/", "https://169.254.169.254/"),
        *("https://user@example.com/", "https://u:p@example.com/", "https://@example.com/"),
        *("https://example.com:0/", "https://example.com:99999/", "https://example.com:x/"),
        *("https://example.com/#a", "https://exa mple.com/", "https://example.com/\n", "https://é.de/"),
        *("https://example.com\\@evil.example/", "https://[::1", "https://[fe80::1%25eth0]/"),
        *("https://example.com/" + "a" * 2048, "https://-a.example/", "https://a..b/"),
        *("https://example.0x7f/", "https://①②⑦.①/", "javascript:alert(1)", ""),
        *("https://0x/", "file:///etc/passwd"),
    ],
)  # fmt: skip
def test_an_address_that_hides_what_it_is_is_refused(url: str) -> None:
    """X27: also in decimal, octal and hexadecimal."""
    with pytest.raises(Refused):
        check_url(url, loopback=False)


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.com", "https://example.com/a?b=c%20d", "https://a-b.example.com:8443/x"),
        *("https://8.8.8.8/hook", "https://[2606:4700:4700::1111]/", "https://xn--bcher-kva.example/"),
    ],
)  # fmt: skip
def test_a_plain_address_is_taken(url: str) -> None:
    check_url(url, loopback=False)


@pytest.mark.parametrize(
    ("url", "called"),
    [
        *(("http://localhost:80/", True), ("http://127.0.0.1/", True), ("http://[::1]/", True)),
        *(("http://example.com/", False), ("http://8.8.8.8/", False), ("http://[2a00::1]/", False)),
    ],
)
def test_only_the_own_machine_is_called_in_the_plain(url: str, *, called: bool) -> None:
    """X27: a deployment that allows its own machine allows nobody else to read along."""
    with nullcontext() if called else pytest.raises(Refused):
        check_url(url, loopback=True)


@given(st.text(max_size=60))
def test_no_address_is_anything_but_taken_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/", f"https://example.com:{text}/"):
        try:
            check_url(url, loopback=False)
        except Refused:
            continue
        assert url.startswith("https://")
        assert url.isascii()


def test_a_receiver_can_tell_who_sent_an_event() -> None:
    """By the words of the convention alone, with what the secret is shown as."""
    secret = webhook.secret_of(_KEY, _ID, 1)
    body = '{"type":"test"}'
    sent = webhook.headers(body, event_id=_ID, timestamp=1_700_000_000, secrets=[secret])
    key = base64.b64decode(webhook.shown(secret).removeprefix("whsec_"))
    signed = f"{sent['webhook-id']}.{sent['webhook-timestamp']}.{body}".encode()
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert f"v1,{expected}" == sent["webhook-signature"]


def test_no_two_subscriptions_keys_or_rotations_share_a_secret() -> None:
    secrets = {
        webhook.secret_of(key, UUID(int=number), generation)
        for key in (_KEY, b"l" * 32)
        for number in (1, 2)
        for generation in (1, 2)
    }
    assert 8 == len(secrets)


def test_the_secret_before_signs_for_a_day() -> None:
    rotated = datetime(2026, 1, 1, tzinfo=UTC)
    assert (2, 1) == tuple(webhook.generations(2, rotated, rotated + timedelta(hours=23)))
    assert (2,) == tuple(webhook.generations(2, rotated, rotated + timedelta(hours=24)))
    assert (2,) == tuple(webhook.generations(2, None, rotated))
    assert (1,) == tuple(webhook.generations(1, None, rotated))


def test_tries_come_ever_more_seldom_and_end() -> None:
    pauses = [webhook.pause_after(attempts) for attempts in range(1, webhook.ATTEMPTS_MAX + 1)]
    assert pauses[-1] is None
    waits = [pause for pause in pauses if pause is not None]
    assert sorted(waits) == waits
    assert timedelta(hours=20) < sum(waits, timedelta()) < timedelta(hours=30)


_NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "said", "pause_s"),
    [
        *((429, "90", 90), (503, " 90 ", 90), (500, "90", 5), (200, "90", 5), (429, "1", 5)),
        (503, "Sat, 31 Jan 2026 12:10:00 GMT", 600),
        *((503, "Sat, 31 Jan 2026 11:00:00 GMT", 5), (503, "", 5), (503, "soon", 5)),
        # Whoever is hostile waits no longer than whoever is away.
        *((503, "999999999", 3_600), (503, "9" * 5_000, 5), (503, "-1", 5), (503, "1e9", 5)),
        *((503, "\u0669\u0660", 5), (429, "Fri, 31 Dec 9999 23:59:59 GMT", 3_600)),
        *((503, "Fri, 31 Dec 9999 23:59:59 -2359", 3_600), (503, "Mon, 1 Jan 0001 00:00:00", 5)),
    ],
)
def test_a_receiver_that_is_busy_says_when_to_come_again(
    status: int, said: str, pause_s: int
) -> None:
    asked = webhook.asked_pause(status, said, now=_NOW)
    assert timedelta(seconds=pause_s) == webhook.pause_after(1, asked)


def test_what_a_receiver_asks_for_makes_no_further_try() -> None:
    assert webhook.pause_after(webhook.ATTEMPTS_MAX, timedelta(seconds=1)) is None


@given(st.text())
def test_nothing_that_a_receiver_says_is_a_fault_of_ours(said: str) -> None:
    pause = webhook.pause_after(1, webhook.asked_pause(503, said, now=_NOW))
    assert pause is not None
    assert timedelta(seconds=5) <= pause <= timedelta(seconds=3_600)
