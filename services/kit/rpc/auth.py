"""Authorization: a call is denied unless the RPC's own rule in the contract allows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from qflow.auth.v1 import auth_pb2

from services.kit.caller import CALLER, Caller
from services.kit.errors import PermissionDenied, QflowError, Unavailable
from services.kit.rpc.call import Call, Handle, Method
from services.kit.rpc.identity import Authenticator, Credential, credential_of
from services.kit.rpc.tls import prove_service

# With the cache's age (`identity.TEAM_CACHE_S`), streams of a member who was removed from a team
# end within five seconds.
TEAM_RECHECK_S: Final = 2.0


class Gate:
    """Admits the callers that the rule of a method allows.

    With `services_prove` a service must also present its own certificate on the connection.
    """

    def __init__(
        self, rule: auth_pb2.AuthRule, authenticator: Authenticator, *, services_prove: bool = False
    ) -> None:
        # The outcome of `check` for every kind and role, computed once instead of on every call.
        self._admitted = {
            (kind, role)
            for kind, role in _CALLERS
            if any(_admits(audience, kind, role, rule) for audience in rule.audiences)
        }
        self._rule, self._scope = rule, rule.scope
        self._authenticator = authenticator
        self._services_prove = services_prove

    def enter_known(self, call: Call) -> bool:
        """Admit a call whose token is cached; return False if it has to be looked up."""
        caller = self._authenticator.remembered(credential_of(call.metadata))
        if caller is None:
            return False
        self._enter(call, caller)
        return True

    async def enter(self, call: Call) -> None:
        """Authenticate and admit a call; raises if it is refused."""
        self._enter(call, await self._authenticator.authenticate(credential_of(call.metadata)))

    async def leave(self, call: Call) -> None:
        """Check again before the response: the caller may have left the team while they waited."""
        caller = await self._authenticator.authenticate(credential_of(call.metadata))
        check(caller, self._rule)

    def _enter(self, call: Call, caller: Caller) -> None:
        call.caller = caller
        if (caller.kind, caller.role) not in self._admitted or not caller.has_scope(self._scope):
            check(caller, self._rule)
        if self._services_prove and caller.kind == "service":
            prove_service(call.context, caller.name)
        CALLER.set(caller)  # in the context of the call's own task, and dropped with it


def gate(
    method: Method, authenticator: Authenticator, *, services_prove: bool = False
) -> Gate | None:
    """Return the gate of a method; None if the method is anonymous."""
    if method.rule is None or method.anonymous:
        return None
    return Gate(method.rule, authenticator, services_prove=services_prove)


def stage(
    inner: Handle, method: Method, authenticator: Authenticator, *, services_prove: bool = False
) -> Handle:
    """Admit callers that the rule allows, and end streams of those it no longer does."""
    entry, rule = gate(method, authenticator, services_prove=services_prove), method.rule
    if entry is None or rule is None:
        return inner

    async def handle(call: Call, request: Any) -> Any:
        await entry.enter(call)
        recheck = _Recheck(authenticator, credential_of(call.metadata), rule)
        return await _rechecked(call, request, inner, recheck)

    return handle


def check(caller: Caller, rule: auth_pb2.AuthRule) -> None:
    """Raise unless the rule admits the caller."""
    admitted = any(_admits(audience, caller.kind, caller.role, rule) for audience in rule.audiences)
    if not admitted or not caller.has_scope(rule.scope):
        raise PermissionDenied(
            "NOT_ALLOWED",
            f"this call needs {_needed(rule)}",
            role=caller.role,
            scope=rule.scope,
        )


def _admits(
    audience: auth_pb2.Audience.ValueType, kind: str, role: str, rule: auth_pb2.AuthRule
) -> bool:
    match audience:
        case auth_pb2.AUDIENCE_USER:
            return kind == "user" and _ROLES.get(role) in rule.roles
        case auth_pb2.AUDIENCE_SERVICE:
            return kind == "service"
        case _:
            return False


@dataclass(frozen=True, slots=True)
class _Recheck:
    authenticator: Authenticator
    credential: Credential
    rule: auth_pb2.AuthRule

    async def until_refused(self, caller: Caller) -> QflowError:
        """Return once the caller of an open stream must be cut off, with the reason."""
        recheck_s = self.authenticator.recheck_s
        if caller.team_role:
            recheck_s = min(recheck_s, TEAM_RECHECK_S)
        while True:
            await asyncio.sleep(recheck_s)
            try:
                check(await self.authenticator.authenticate(self.credential), self.rule)
            except Unavailable as error:
                # A service may keep its stream while the database is away; for a user it is unknown
                # whether they may still see what the stream shows.
                if caller.kind == "user":
                    return error
            except QflowError as error:
                return error


async def _rechecked(call: Call, request: Any, inner: Handle, recheck: _Recheck) -> Any:
    assert call.caller is not None
    watching = asyncio.create_task(recheck.until_refused(call.caller))
    streaming = asyncio.current_task()
    assert streaming is not None
    refused = False

    def end_stream(done: asyncio.Task[QflowError]) -> None:
        nonlocal refused
        if not done.cancelled():
            refused = True
            streaming.cancel()

    watching.add_done_callback(end_stream)
    try:
        return await inner(call, request)
    except asyncio.CancelledError:
        # Only a cancellation by the recheck becomes an error; one by client or server propagates.
        if refused and streaming.uncancel() == 0:
            raise await watching from None
        raise
    finally:
        watching.remove_done_callback(end_stream)
        watching.cancel()


_ROLES: Final = {
    "viewer": auth_pb2.ROLE_VIEWER,
    "user": auth_pb2.ROLE_USER,
    "admin": auth_pb2.ROLE_ADMIN,
}


_CALLERS: Final = (
    *(("user", role) for role in (*_ROLES, "service")),
    *(("service", role) for role in (*_ROLES, "service")),
)


def _needed(rule: auth_pb2.AuthRule) -> str:
    callers = []
    if auth_pb2.AUDIENCE_USER in rule.audiences:
        roles = [name for name, number in _ROLES.items() if number in rule.roles]
        callers.append(f"a user with the role {' or '.join(roles)} and the scope {rule.scope}")
    if auth_pb2.AUDIENCE_SERVICE in rule.audiences:
        callers.append(f"a service token with the scope {rule.scope}")
    return " or ".join(callers)
