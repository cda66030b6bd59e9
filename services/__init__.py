"""The services of Qflow, and how gRPC moves bytes in each of them."""

from __future__ import annotations

import os
from typing import Final

# gRPC's own polling hands every read to a thread of a pool, who hands it to the thread that hands
# it to the event loop. The poller it had before reads in the second of these: a third less of both
# processors and four tenths less time for each turn of a stream (docs/adr/0029). gRPC reads the
# variable while it is imported, so it is set here, before anything of a service can import it.
TRANSPORT: Final = "-event_engine_listener,-event_engine_client"

os.environ.setdefault("GRPC_EXPERIMENTS", TRANSPORT)
