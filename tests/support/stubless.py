"""A client that has no stubs: a small grpcurl."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


class Stubless:
    """Calls by name, with requests and answers as JSON."""

    def __init__(self, address: str, token: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)
        self._metadata = [("authorization", f"Bearer {token}")]

    def call(self, name: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Call `package.Service/Method`; gives each answer."""
        service, _, method = name.rpartition("/")
        rpc = self.pool.FindServiceByName(service).FindMethodByName(method)
        message = json_format.ParseDict(request, GetMessageClass(rpc.input_type)())
        answer_class = GetMessageClass(rpc.output_type)
        begin: Any = self.channel.unary_stream(
            f"/{name}", response_deserializer=answer_class.FromString
        )
        answers = begin(message.SerializeToString(), metadata=self._metadata, timeout=60)
        for answer in answers:
            yield json_format.MessageToDict(answer)
