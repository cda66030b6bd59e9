"""PackageRuleService: which packages the tenant's nodes may use."""

from __future__ import annotations

from typing import Any

import grpc
from qflow.runner.v1 import package_rule_service_pb2 as pb
from qflow.runner.v1.package_rule_service_pb2_grpc import PackageRuleServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.kit.rpc.request_key import answered, request_key
from services.runner.domain.package_rules import PackageRules
from services.runner.storage.package_rules import StoredRules
from services.runner.usecases.package_rules import etag_of, get_rules, set_rules

Context = grpc.aio.ServicerContext[Any, Any]


class PackageRuleServicer(PackageRuleServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def GetPackageRules(
        self, request: pb.GetPackageRulesRequest, context: Context
    ) -> pb.GetPackageRulesResponse:
        """Return the rules."""
        found = await get_rules(self._pool, current_caller())
        return pb.GetPackageRulesResponse(rules=_rules(found))

    async def SetPackageRules(
        self, request: pb.SetPackageRulesRequest, context: Context
    ) -> pb.SetPackageRulesResponse:
        """Replace the rules."""
        written = await set_rules(
            self._pool,
            current_caller(),
            PackageRules(
                allowed=list(request.allowed),
                denied=list(request.denied),
                release_age_days_min=request.release_age_days_min,
            ),
            etag=request.etag,
            key=request_key(request, "runner.SetPackageRules", _set),
        )
        return answered(pb.SetPackageRulesResponse, written, _set)


def _set(rules: StoredRules) -> pb.SetPackageRulesResponse:
    return pb.SetPackageRulesResponse(rules=_rules(rules))


def _rules(rules: StoredRules | None) -> pb.PackageRules:
    if rules is None:
        return pb.PackageRules(etag=etag_of(None))
    return pb.PackageRules(
        allowed=rules.allowed,
        denied=rules.denied,
        release_age_days_min=rules.release_age_days_min,
        etag=etag_of(rules),
        updated_by=str(rules.updated_by),
        update_time=codec.timestamp(rules.updated_at),
    )
