"""The agent: reads frames and replies to them, until its channel ends."""

import _signal
import gc
import os
import sys
import time

from .beats import BEATS
from .carried import FILES
from .confine import apply_limits
from .errors import MAX_MESSAGE, clean, error_of, no_passing, plain_error, safe_text, too_large
from .node import Node
from .plain import dump
from .printed import flush_streams
from .problems import Mismatch, Terminated
from .residue import Residue, left_running
from .rooms import ROOMS
from .spare_pages import SPARE

PROTOCOL = 1


class Agent:
    """Reads frames until the channel ends."""

    def __init__(self, channel, meter):
        self.channel = channel
        self.meter = meter
        self.apart = self.call_once = None  # imported with the first `prepare`
        self.node = None
        self.residue = None
        self.context = {}
        self.broken = False
        self.prepared = {}
        self.programs = {}  # compiled code of versions whose calls are forked
        self.together = None

    def serve(self):
        self.channel.write(
            {
                "op": "hello",
                "protocol": PROTOCOL,
                "python": "%d.%d.%d" % sys.version_info[:3],
                "pid": os.getpid(),
            }
        )
        while True:
            frame = self.channel.read()
            if frame is None:
                return None
            header, body = frame
            op = header["op"]
            if op == "call" and "version" not in header:
                self.call(header, body)
                if SPARE.due() and not self.channel.waiting():
                    SPARE.prepare()
            elif op == "setup":
                try:
                    apply_limits(header)
                except OSError as problem:
                    return self.channel.write({"op": "refused", "why": str(problem)})
                ROOMS.__init__(header.get("rooms") or ())
                self.make_ready(header.get("egress"))
            elif op == "load":
                self.load(header)
                if self.together is not None:
                    return self.together.serve()
            elif op == "prepare":
                self.prepare(header)
            elif op == "call":
                self.call_apart(header, body)
            if self.broken:
                return None

    def make_ready(self, egress):
        """Open and pass out the socket on which the way out is served, if there is one."""
        if not egress:
            self.channel.write({"op": "ready"})
            return
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
            place = "http://127.0.0.1:%d" % listener.getsockname()[1]
            self.channel.write_text('{"op":"ready"}', (), (listener.fileno(),))
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ[name] = os.environ[name.upper()] = place
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"

    def load(self, header):
        began = time.perf_counter_ns()
        self.set_context(header.get("context") or {})
        error = None
        try:
            self.node = Node(header)
            self.node.run_module()
            self.node.compile_codecs()
            if header.get("concurrency", 1) > 1:
                from .together import Together

                self.together = Together(self)
        except Terminated:
            self.broken = True
            error = plain_error("cancelled", "stopped while the node's code was loaded")
        except BaseException as problem:
            error = self.describe_problem(problem, loading=True)
        flush_streams()
        gc.freeze()
        wall_us = (time.perf_counter_ns() - began) // 1000
        if error is None:
            self.residue = Residue()
            ROOMS.settle()
            self.meter.begin()
            self.channel.write({"op": "loaded", "wall_us": wall_us})
        else:
            self.channel.write({"op": "failed", "error": error, "wall_us": wall_us})

    def prepare(self, header):
        """Register a node version that is loaded anew for each call, in a separate process."""
        # Imported late: few sandboxes need it; forks share what is loaded before them.
        from .ahead import compiled_ahead, import_ahead, keep_apart, rehearse
        from .apart import Apart
        from .once import serve_once

        self.apart, self.call_once = Apart, serve_once
        began = time.perf_counter_ns()
        if not self.prepared:
            keep_apart()
        self.prepared[header["version"]] = header
        if header["apart"] == "fork":
            import_ahead(header)
            self.programs[header["version"]] = compiled_ahead(header["code"])
            rehearse(header)
            flush_streams()  # every fork would print what is left in a buffer
            gc.freeze()
            # Not with several threads: a lock held by another thread would stay locked in the fork.
            if len(os.listdir("/proc/self/task")) > 1:
                header["apart"] = "fresh"
        ROOMS.settle()
        wall_us = (time.perf_counter_ns() - began) // 1000
        self.channel.write({"op": "loaded", "wall_us": wall_us, "apart": header["apart"]})

    def call_apart(self, header, body):
        """Call in a child, which loads the code itself, and cannot reach the runner."""
        version = header["version"]
        program = self.programs.get(version)
        apart = self.apart(self.prepared[version], header, body, program, self.call_once)
        reply, parts, descriptors = apart.result(self.channel)
        if apart.killed:
            # Killed by the kernel for lack of memory: the runner learns that from the sandbox's
            # end.
            os._exit(128 + _signal.SIGKILL)
        reply["recycle"] = "children" if left_running() else ""
        if not reply["recycle"] and not ROOMS.empty():
            reply["recycle"] = "temporary files"
        try:
            self.channel.write_text(dump(reply), [parts], descriptors)
        except OSError:
            if not descriptors:
                raise
            kept = {name: reply[name] for name in ("op", "id", "recycle", "usage")}
            self.channel.write({**kept, "error": no_passing()})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def set_context(self, context):
        if context == self.context:
            return
        known = self.residue.environment if self.residue is not None else {}
        before = self.context
        for name in before:
            if name not in context:
                os.environ.pop(name, None)
                known.pop(name.encode(), None)
        # As `os.environ` sets them, without its checks: half of the variables differ in each call.
        data = os.environ._data
        for name, value in context.items():
            if before.get(name) != value:
                name, value = name.encode(), value.encode()
                os.putenv(name, value)
                data[name] = known[name] = value
        self.context = context

    def call(self, header, body):
        node = self.node
        self.set_context(header.get("context") or {})
        self.channel.room = header.get("log_room", 0)
        cpu = time.process_time_ns()
        began = entered = left = time.perf_counter_ns()
        texts, error = [], None
        FILES.begin(header)
        BEATS.begin(self.channel, self.context.get("QFLOW_PROGRESS", ""))
        try:
            positional, keyword = node.decode(header, body)
            entered = time.perf_counter_ns()
            value = node.run(positional, keyword)
            left = time.perf_counter_ns()
            texts = node.encode(value)
            value = positional = keyword = None
            size = 0
            for _, text in texts:
                size += len(text)
            for made in FILES.made:
                if made[1]:  # only what takes memory; a file is limited where it is written
                    size += os.fstat(made[3]).st_size
            error = too_large(size, header["output_bytes_max"])
            if error is not None:
                texts = []
        except Terminated:
            self.broken = True
            error = plain_error("cancelled", "stopped by a signal from the runner")
        except BaseException as problem:
            if entered != began and left == began:
                left = time.perf_counter_ns()
            error = self.describe_problem(problem)
        done = time.perf_counter_ns()
        flush_streams()
        BEATS.end(error is not None)
        self.channel.room = 0  # output after the call belongs to none
        recycle = self.left_behind(began)
        cpu_us, peak_kb, more = self.meter.end(cpu, self.residue.started)
        user_us = max(0, left - entered) // 1000
        # Formatted by hand: it is most of the cost of a short call besides the call itself.
        reply = (
            '{"op":"result","id":%d,"recycle":"%s","usage":{"cpu_us":%d,"max_rss_kb":%d,'
            '"wall_us":%d,"serialization_us":%d%s},'
        ) % (
            header["id"],
            recycle,
            cpu_us,
            peak_kb,
            user_us,
            max(0, (done - began) // 1000 - user_us),
            more,
        )
        if error is None:
            sizes = ",".join(["[%s,%d]" % (name, len(text)) for name, text in texts])
            whole = reply + '"outputs":[%s]' % sizes
            if FILES.made:
                whole += ',"files":%s' % dump([made[:3] for made in FILES.made])
            descriptors = [made[3] for made in FILES.made]
            try:
                self.channel.write_text(whole + "}", [text for _, text in texts], descriptors)
            except OSError:
                if not descriptors:
                    raise
                error = no_passing()
        if error is not None:
            self.channel.write_text('%s"error":%s}' % (reply, dump(error)))
        if FILES.made or FILES.opened or FILES.mapped:
            FILES.end()

    def left_behind(self, began):
        try:
            if self.node.leftover_tasks():
                return "asyncio tasks"
            return self.residue.found(time.perf_counter_ns() - began)
        except BaseException:
            return "unknown state"

    def describe_problem(self, problem, loading=False):
        source = self.node.source if self.node is not None else []
        if isinstance(problem, Mismatch):
            error = plain_error(
                problem.kind, clean(str(problem.args[0]) + problem.path, MAX_MESSAGE)
            )
            error["input"] = problem.input
            return error
        if isinstance(problem, SystemExit):
            error = error_of(problem, source, "exited")
            error["message"] = "the code called sys.exit(%s) before it returned" % safe_text(
                problem, 100
            )
            return error
        if isinstance(problem, MemoryError):
            return error_of(problem, source, "oom")
        if loading and isinstance(problem, ModuleNotFoundError):
            error = error_of(problem, source, "dependency_error")
            error["message"] += "; declare the package that brings it in a PEP 723 block"
            return error
        return error_of(problem, source)
