"""The services. Whichever of them is imported, this comes before gRPC does and settles its polling.

gRPC's own event engine hands each piece of a message from thread to thread, three more than it
takes: held streams are a quarter quicker without it. A value that is set from outside stays.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
