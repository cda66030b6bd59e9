"""Whoever stands by has the rules of the contract compiled before its turn comes."""

from __future__ import annotations

from google.protobuf import descriptor_pool
from qflow.orchestrator.v1 import limit_service_pb2

from services.kit.rpc import validate


def test_no_rule_of_a_package_is_left_to_compile() -> None:
    validate.compile_ahead("qflow.orchestrator.v1")
    service = limit_service_pb2.DESCRIPTOR.services_by_name["LimitService"]
    found = descriptor_pool.Default().FindServiceByName(service.full_name)
    before = validate._compile.cache_info().misses
    for method in found.methods:
        validate._compile(method.input_type)
    assert before == validate._compile.cache_info().misses > 0
