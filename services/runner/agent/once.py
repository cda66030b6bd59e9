"""One call in a separate process."""

import _signal
import fcntl
import os
import resource
import sys
import time

from .agent import Agent
from .errors import plain_error
from .meter import Meter
from .node import Node
from .printed import flush_streams
from .problems import Terminated
from .residue import Nothing


def serve_once(channel, writing, spec, header, body, program=None):
    """In the child: load the code, call it, reply and exit."""
    # A high number, out of reach of code that closes low ones, as in the agent.
    channel.begin_anew(fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, 200))
    os.close(writing)
    _signal.signal(_signal.SIGTERM, channel.on_stop)
    channel.room = header.get("log_room", 0)
    agent = Agent(channel, Meter(-1))  # so its memory peak is only this call's
    draw_anew()
    cpu = time.process_time_ns()
    began = time.perf_counter_ns()
    agent.set_context(header.get("context") or {})
    try:
        agent.node = Node(spec)
        agent.node.run_module(program)
        agent.node.compile_codecs()
    except Terminated:
        error = plain_error("cancelled", "stopped while the node's code was loaded")
    except BaseException as problem:
        error = agent.describe_problem(problem, loading=True)
    else:
        agent.residue = Nothing()
        agent.call(header, body)
        flush_streams()
        os._exit(0)
    flush_streams()
    channel.room = 0
    usage = {
        "cpu_us": (time.process_time_ns() - cpu) // 1000,
        "max_rss_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "wall_us": (time.perf_counter_ns() - began) // 1000,
        "serialization_us": 0,
    }
    agent.channel.write({"op": "result", "id": header["id"], "usage": usage, "error": error})
    os._exit(0)


def draw_anew():
    """Reseed numpy, or all forks would draw the same numbers; `random` reseeds itself."""
    module = sys.modules.get("numpy.random")
    if module is not None:
        try:
            module.seed()
        except BaseException:
            pass
