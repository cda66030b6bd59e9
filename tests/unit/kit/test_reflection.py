"""What tools ask reflection for by name."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pool
from qflow.registry.v1 import node_service_pb2

from services.kit.rpc.reflection import _MethodsToo


def test_a_method_is_found_in_the_file_of_its_service() -> None:
    """`grpcurl describe <service>.<method>` asks for it so."""
    pool = _MethodsToo(descriptor_pool.Default())
    found = pool.FindFileContainingSymbol("qflow.registry.v1.NodeService.CreateNode")
    assert node_service_pb2.DESCRIPTOR.name == found.name


def test_a_method_that_is_not_there_is_not_found() -> None:
    pool = _MethodsToo(descriptor_pool.Default())
    with pytest.raises(KeyError):
        pool.FindFileContainingSymbol("qflow.registry.v1.NodeService.NoSuchMethod")
