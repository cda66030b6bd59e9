"""Who may call: denied unless the RPC's rule admits the caller, on every kind of call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import grpc
import pytest
from qflow.auth.v1 import auth_pb2

from services.kit.caller import Caller, Kind, Role, Scopes, current_caller
from services.kit.errors import PermissionDenied, Unauthenticated
from services.kit.ids import token_sha256
from services.kit.rpc.auth import check
from services.kit.rpc.identity import Authenticator, Credential
from services.kit.rpc.listener import Listener
from services.kit.rpc.server import open_server
from tests.integration.kit.conftest import SERVICE as SERVICE_TOKEN
from tests.integration.kit.conftest import USER, VIEWER, Service
from tests.integration.kit.test_kit_wire import SERVICE, reason

KINDS = [
    ("Say", "unary_unary"),
    ("Count", "unary_stream"),
    ("Collect", "stream_unary"),
    ("Chat", "stream_stream"),
]
# X1 none, X2 bogus, X3-like forms: each must be refused in the very same way.
NOT_TOKENS: dict[str, list[tuple[str, str | bytes]]] = {
    "none": [],
    "empty": [("authorization", "")],
    "no scheme": [("authorization", USER)],
    "another scheme": [("authorization", f"Basic {USER}")],
    "no token": [("authorization", "Bearer")],
    "blank token": [("authorization", "Bearer ")],
    "two tokens": [("authorization", f"Bearer {USER} {USER}")],
    "two headers": [("authorization", f"Bearer {USER}"), ("authorization", f"Bearer {USER}")],
    "bogus": [("authorization", "Bearer bogus")],
    "prefix of a token": [("authorization", f"Bearer {USER[:-1]}")],
    "the digest instead": [("authorization", f"Bearer {token_sha256(USER)}")],
    "too long": [("authorization", "Bearer " + "a" * 257)],
    "binary header": [("authorization-bin", f"Bearer {USER}".encode())],
    "other header": [("x-authorization", f"Bearer {USER}")],
}


async def _silent() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def outcome(
    service: Service,
    method: str,
    kind: str,
    metadata: list[tuple[str, str | bytes]],
    *,
    refused: bool = False,
) -> grpc.aio.AioRpcError | None:
    """Call an RPC of any kind with this metadata; None when it went well.

    A stream that is to be refused says nothing: a client that writes while its call ends may tell
    of its own failed write instead of the answer.
    """
    channel = service.bare()
    multi: Any = getattr(channel, kind)(f"{SERVICE}/{method}")
    stream = _silent() if refused else iter([b""])
    call = multi(stream if kind.startswith("stream") else b"", metadata=metadata, timeout=5)
    try:
        if kind.endswith("unary"):
            await call
        else:
            async for _ in call:
                pass
    except grpc.aio.AioRpcError as error:
        return error
    finally:
        await channel.close()
    return None


@pytest.mark.parametrize("metadata", NOT_TOKENS.values(), ids=NOT_TOKENS.keys())
@pytest.mark.parametrize(("method", "kind"), KINDS)
async def test_whoever_brings_no_valid_token_is_unauthenticated(
    service: Service, method: str, kind: str, metadata: list[tuple[str, str | bytes]]
) -> None:
    """X1, X2, X7."""
    error = await outcome(service, method, kind, metadata, refused=True)
    assert error is not None
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED
    assert reason(error) == "TOKEN_REFUSED"
    assert service.behaviors.seen == []


@pytest.mark.parametrize(("method", "kind"), KINDS)
async def test_a_valid_token_is_let_through(service: Service, method: str, kind: str) -> None:
    assert None is await outcome(service, method, kind, [("authorization", f"bearer {USER}")])


async def test_an_expired_token_is_refused(service: Service) -> None:
    """X3."""
    await service.pool.execute("UPDATE identities SET expires_at = now() - interval '1 second'")
    error = await outcome(service, "Say", "unary_unary", [("authorization", f"Bearer {USER}")])
    assert error is not None
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("method", "token", "allowed"),
    [
        ("Change", USER, True),
        ("Change", VIEWER, False),
        ("Change", SERVICE_TOKEN, False),
        ("Say", VIEWER, True),
        ("Say", SERVICE_TOKEN, False),
        ("Peer", SERVICE_TOKEN, True),
        ("Peer", USER, False),
        ("Greet", "bogus", True),
    ],
)
async def test_the_rule_decides_by_audience_role_and_scope(
    service: Service, method: str, token: str, *, allowed: bool
) -> None:
    """X17."""
    metadata: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {token}")]
    error = await outcome(service, method, "unary_unary", metadata)
    assert (None if allowed else grpc.StatusCode.PERMISSION_DENIED) == (error and error.code())


async def test_a_service_without_the_scope_is_denied(service: Service) -> None:
    await service.pool.execute("UPDATE identities SET scopes = '{registry}' WHERE role='service'")
    metadata: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {SERVICE_TOKEN}")]
    error = await outcome(service, "Peer", "unary_unary", metadata)
    assert error is not None
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_narrow_user_token_is_held_to_its_scopes(service: Service) -> None:
    await service.pool.execute("UPDATE identities SET scopes = '{tests:read}' WHERE role = 'user'")
    metadata: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {USER}")]
    assert None is await outcome(service, "Say", "unary_unary", metadata)
    error = await outcome(service, "Change", "unary_unary", metadata)
    assert error is not None
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ("all", True),
        (frozenset(["tests:read"]), True),
        (frozenset(["all"]), False),
        (frozenset(), False),
    ],
)
def test_a_list_of_scopes_that_is_empty_allows_nothing(scopes: Scopes, *, allowed: bool) -> None:
    """X17."""
    for role, kind, audience in (
        ("user", "user", auth_pb2.AUDIENCE_USER),
        ("service", "service", auth_pb2.AUDIENCE_SERVICE),
    ):
        caller = Caller(
            user_id=UUID(int=1),
            tenant_id=UUID(int=1),
            role=cast("Role", role),
            is_owner=False,
            scopes=scopes,
            kind=cast("Kind", kind),
            name="x",
            session_id=UUID(int=1),
            expires_at=datetime.max.replace(tzinfo=UTC),
        )
        rule = auth_pb2.AuthRule(
            audiences=[audience], roles=[auth_pb2.ROLE_USER], scope="tests:read"
        )
        with nullcontext() if allowed else pytest.raises(PermissionDenied):
            check(caller, rule)


@pytest.mark.parametrize(
    ("token", "method", "scopes", "allowed"),
    [
        (USER, "Say", "{}", True),
        (USER, "Say", "{all}", False),
        (SERVICE_TOKEN, "Peer", "{}", False),
        (SERVICE_TOKEN, "Peer", "{all}", False),
    ],
)
async def test_a_session_has_all_scopes_of_its_role_and_a_service_only_those_it_lists(
    service: Service, token: str, method: str, scopes: str, *, allowed: bool
) -> None:
    """X17."""
    await service.pool.execute("UPDATE identities SET scopes = $1::text::text[]", scopes)
    metadata: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {token}")]
    error = await outcome(service, method, "unary_unary", metadata)
    assert (None if allowed else grpc.StatusCode.PERMISSION_DENIED) == (error and error.code())


async def test_no_name_is_public_for_how_it_begins_or_ends(service: Service) -> None:
    """X6: `…/Check` and `grpc.health.v1…` open nothing by themselves."""
    channel = service.bare()
    for path in (
        f"{SERVICE}/Say/grpc.health.v1.Health/Check",
        f"/grpc.health.v1.Health/..{SERVICE}/Say",
        f"{SERVICE}/Say/",
        f"{SERVICE}/say",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(b"", timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await channel.close()
    assert service.behaviors.seen == []


async def test_the_servicer_sees_the_caller_and_only_within_its_call(service: Service) -> None:
    async def unary(_request: Any, _context: Any) -> Any:
        caller = current_caller()
        return service.pb.Note(text=f"{caller.role} {caller.kind} {caller.tenant_id}")

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield service.pb.Note(text=current_caller().role)

    service.behaviors.unary, service.behaviors.stream = unary, stream
    tenant = await service.pool.fetchval("SELECT user_id FROM identities WHERE role = 'viewer'")
    async with service.channel(VIEWER) as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        assert f"viewer user {tenant}" == (await stub.Say(service.pb.Note())).text
        assert [note.text async for note in stub.Count(service.pb.Note())] == ["viewer"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Greet(service.pb.Note())  # anonymous: there is no caller
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(Unauthenticated):
        current_caller()


async def test_while_the_database_is_away_callers_are_not_called_unknown(service: Service) -> None:
    """F11: UNAVAILABLE with a time to retry, not UNAUTHENTICATED."""
    await service.pool.close()
    error = await outcome(service, "Say", "unary_unary", [("authorization", f"Bearer {USER}")])
    assert error is not None
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(error) == "IDENTITY_UNAVAILABLE"


async def test_an_identity_is_remembered_and_asked_for_once_at_a_time(
    service: Service,
) -> None:
    """X4, F21: for five seconds at most."""
    now = 100.0
    authenticator = Authenticator(service.pool, clock=lambda: now)
    callers: list[Caller] = await asyncio.gather(
        *(authenticator.authenticate(Credential(token_sha256(USER))) for _ in range(50))
    )
    assert len({id(caller) for caller in callers}) == 1
    await service.pool.execute("DELETE FROM identities")
    assert callers[0] is await authenticator.authenticate(Credential(token_sha256(USER)))
    now += 5.0
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(Credential(token_sha256(USER)))


async def test_that_a_token_is_not_known_is_remembered_too_though_it_once_was(
    service: Service,
) -> None:
    """X4."""
    now = 100.0
    authenticator = Authenticator(service.pool, clock=lambda: now)
    await authenticator.authenticate(Credential(token_sha256(USER)))
    await service.pool.execute("UPDATE identities SET digest = 'gone' WHERE role = 'user'")
    for _ in range(2):
        now += 5.0
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(Credential(token_sha256(USER)))
    await service.pool.execute(
        "UPDATE identities SET digest = $1 WHERE role = 'user'", token_sha256(USER)
    )
    with pytest.raises(Unauthenticated):  # for five seconds the database is not asked
        await authenticator.authenticate(Credential(token_sha256(USER)))
    now += 5.0
    assert "user" == (await authenticator.authenticate(Credential(token_sha256(USER)))).role


@pytest.mark.parametrize("service", [{"recheck_s": 0.01}], indirect=True)
@pytest.mark.parametrize("kind", ["Count", "Chat"])
async def test_an_open_stream_ends_when_its_token_is_revoked(service: Service, kind: str) -> None:
    """X8."""

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield service.pb.Note(text="first")
        await asyncio.Event().wait()

    service.behaviors.stream = stream
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        call = stub.Chat() if kind == "Chat" else stub.Count(service.pb.Note())
        assert (await call.read()).text == "first"
        await service.pool.execute("DELETE FROM identities WHERE role = 'user'")
        service.authenticator.forget(token_sha256(USER))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    await service.behaviors.ended.wait()


TEAM = "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"
_JOIN = f"INSERT INTO members SELECT '{TEAM}', user_id, 'user' FROM identities WHERE role = 'user'"
_ACTING = {"metadata": (("qflow-tenant", TEAM),)}


@pytest.mark.parametrize("service", [{"recheck_s": 0.01}], indirect=True)
async def test_an_open_stream_of_whoever_left_the_team_ends_within_five_seconds(
    service: Service,
) -> None:
    """X4, X7: nothing tells this service that they did."""
    await service.pool.execute(_JOIN)

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield service.pb.Note(text="first")
        await asyncio.Event().wait()

    service.behaviors.stream = stream
    async with service.channel() as channel:
        call = service.stubs.grpc.KitTestServiceStub(channel).Count(service.pb.Note(), **_ACTING)
        assert (await call.read()).text == "first"
        await service.pool.execute("DELETE FROM members")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), 30)
    assert (grpc.StatusCode.PERMISSION_DENIED, "NOT_A_MEMBER") == (
        caught.value.code(),
        reason(caught.value),
    )


@pytest.mark.parametrize("method", ["Say", "Change"])
async def test_what_was_asked_while_still_in_the_team_is_told_only_of_what_was_done(
    service: Service, method: str
) -> None:
    """X4: a read that waited is held back; who changed something learns that it is done."""
    await service.pool.execute(_JOIN)

    async def leave(request: Any, _context: Any) -> Any:
        await service.pool.execute("DELETE FROM members")
        service.authenticator.forget(token_sha256(USER))
        return service.pb.Note(text="answer")

    service.behaviors.unary = leave
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        call = getattr(stub, method)(service.pb.Note(), **_ACTING)
        if method == "Change":
            assert "answer" == (await call).text
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert grpc.StatusCode.PERMISSION_DENIED == caught.value.code()


async def test_a_service_does_not_start_with_an_rpc_that_has_no_rule(service: Service) -> None:
    stubs = service.stubs.grpc
    with pytest.raises(
        TypeError, match=r"UnruledService\.Forgotten has no rule on who may call it"
    ):
        await open_server(
            Listener(address="127.0.0.1:0"),
            [(stubs.add_UnruledServiceServicer_to_server, stubs.UnruledServiceServicer())],
            authenticator=service.authenticator,
            health_servicer=service.health,
        )
