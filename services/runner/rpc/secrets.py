"""SecretService: secrets of tenants, and their grants to nodes."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Final

import grpc
from qflow.runner.v1 import secret_service_pb2 as pb
from qflow.runner.v1.secret_service_pb2_grpc import SecretServiceServicer

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.runner.storage.secrets import Grant, Secret, SecretVersion
from services.runner.usecases import secrets
from services.runner.usecases.secrets import Secrets

Context = grpc.aio.ServicerContext[Any, Any]
_LIST: Final = "runner.ListSecrets"
_GRANTS: Final = "runner.ListSecretGrants"


class SecretServicer(SecretServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, deps: Secrets) -> None:
        self._deps = deps

    async def SetSecret(
        self, request: pb.SetSecretRequest, context: Context
    ) -> pb.SetSecretResponse:
        """Create a secret, or a new version of it."""
        told_apart = await asyncio.to_thread(_without_value, request)
        written = await secrets.set_secret(
            self._deps,
            current_caller(),
            request.name,
            request.value,
            description=request.description,
            etag=request.etag,
            key=request_key(told_apart, "runner.SetSecret", _was_set),
        )
        return answered(pb.SetSecretResponse, written, _was_set)

    async def GetSecret(
        self, request: pb.GetSecretRequest, context: Context
    ) -> pb.GetSecretResponse:
        """Return a secret and its versions, without their values."""
        found, versions = await secrets.get_secret(self._deps, current_caller(), request.name)
        return pb.GetSecretResponse(
            secret=_secret(found), versions=[_version(each) for each in versions]
        )

    async def ListSecrets(
        self, request: pb.ListSecretsRequest, context: Context
    ) -> pb.ListSecretsResponse:
        """Return a page of secrets."""
        pages = Pages(_LIST, request)
        found = await secrets.list_secrets(
            self._deps, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_secret, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListSecretsResponse(secrets=shown, next_page_token=token)

    async def UseSecretVersion(
        self, request: pb.UseSecretVersionRequest, context: Context
    ) -> pb.UseSecretVersionResponse:
        """Make nodes get another version."""
        written = await secrets.use_version(
            self._deps,
            current_caller(),
            request.name,
            request.version,
            etag=request.etag,
            key=request_key(request, "runner.UseSecretVersion", _used),
        )
        return answered(pb.UseSecretVersionResponse, written, _used)

    async def DeleteSecret(
        self, request: pb.DeleteSecretRequest, context: Context
    ) -> pb.DeleteSecretResponse:
        """Delete a secret."""
        await secrets.delete_secret(
            self._deps,
            current_caller(),
            request.name,
            etag=request.etag,
            key=request_key(request, "runner.DeleteSecret", lambda _: pb.DeleteSecretResponse()),
        )
        return pb.DeleteSecretResponse()

    async def GrantSecret(
        self, request: pb.GrantSecretRequest, context: Context
    ) -> pb.GrantSecretResponse:
        """Grant a secret to a node."""
        await secrets.grant(
            self._deps,
            current_caller(),
            request.name,
            codec.uuid_from(request.node_id, field="node_id"),
            key=request_key(request, "runner.GrantSecret", lambda _: pb.GrantSecretResponse()),
        )
        return pb.GrantSecretResponse()

    async def RevokeSecret(
        self, request: pb.RevokeSecretRequest, context: Context
    ) -> pb.RevokeSecretResponse:
        """Revoke a node's grant."""
        await secrets.revoke(
            self._deps,
            current_caller(),
            request.name,
            codec.uuid_from(request.node_id, field="node_id"),
            key=request_key(request, "runner.RevokeSecret", lambda _: pb.RevokeSecretResponse()),
        )
        return pb.RevokeSecretResponse()

    async def ListSecretGrants(
        self, request: pb.ListSecretGrantsRequest, context: Context
    ) -> pb.ListSecretGrantsResponse:
        """Return a page of the nodes that are granted a secret."""
        pages = Pages(_GRANTS, request, request.name)
        found = await secrets.list_grants(
            self._deps,
            current_caller(),
            request.name,
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_grant, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListSecretGrantsResponse(grants=shown, next_page_token=token)


def _without_value(request: pb.SetSecretRequest) -> pb.SetSecretRequest:
    """Replace the value by a slow salted hash, since a digest of the request is stored.

    A plain digest of a short secret could be found by trying. The salt is the id of the request.
    """
    if not request.request_id:
        return request
    copy = pb.SetSecretRequest()
    copy.CopyFrom(request)
    copy.value = hashlib.scrypt(
        request.value.encode(), salt=request.request_id.encode(), n=2**14, r=8, p=1
    ).hex()
    return copy


def _was_set(secret: Secret) -> pb.SetSecretResponse:
    return pb.SetSecretResponse(secret=_secret(secret))


def _used(secret: Secret) -> pb.UseSecretVersionResponse:
    return pb.UseSecretVersionResponse(secret=_secret(secret))


def _secret(secret: Secret) -> pb.Secret:
    return pb.Secret(
        id=str(secret.id),
        name=secret.name,
        description=secret.description,
        version=secret.current_version,
        etag=secret.etag,
        created_by=str(secret.created_by),
        create_time=codec.timestamp(secret.created_at),
        updated_by=str(secret.updated_by),
        update_time=codec.timestamp(secret.updated_at),
    )


def _version(version: SecretVersion) -> pb.SecretVersion:
    return pb.SecretVersion(
        version=version.version,
        key_id=version.key_id,
        created_by=str(version.created_by),
        create_time=codec.timestamp(version.created_at),
    )


def _grant(grant: Grant) -> pb.SecretGrant:
    return pb.SecretGrant(
        node_id=str(grant.id),
        node_name=grant.name,
        created_by=str(grant.created_by),
        create_time=codec.timestamp(grant.created_at),
    )
