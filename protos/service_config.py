"""The published configuration of calls, of the contract itself: which RPCs may be tried again.

gRPC reads it in every language (`grpc.service_config`). A call that changes nothing is tried again
where the service could not be reached; one that changes something is the caller's to repeat, with
the `request_id` that makes it safe.
"""

from __future__ import annotations

import json
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto, MethodOptions

_RETRY: Final = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# The longest that a call may ask a service to wait is 60 s.
_TIMEOUT: Final = "75s"


def service_config(contract: FileDescriptorSet) -> str:
    """Give the configuration as JSON text, the same for the same contract."""
    found: dict[tuple[bool, bool], list[dict[str, str]]] = {}
    for file in contract.file:
        for service in file.service:
            for method in service.method:
                key = (_may_repeat(method), method.client_streaming or method.server_streaming)
                name = {"service": f"{file.package}.{service.name}", "method": method.name}
                found.setdefault(key, []).append(name)
    configs: list[dict[str, Any]] = []
    for (repeats, streams), names in sorted(found.items(), reverse=True):
        config: dict[str, Any] = {"name": sorted(names, key=lambda each: tuple(each.values()))}
        if not streams:
            config["timeout"] = _TIMEOUT
        if repeats:
            config["retryPolicy"] = _RETRY
        if len(config) > 1:
            configs.append(config)
    return json.dumps({"methodConfig": configs}, indent=1) + "\n"


def _may_repeat(method: MethodDescriptorProto) -> bool:
    nothing_changes = method.options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    return nothing_changes and not method.client_streaming
