"""Several concurrent calls of one `async def`."""

import io
import os
import resource
import sys
import time

from .beats import BEATS, Beats
from .channel import BEAT
from .errors import plain_error, too_large
from .meter import cpu_us_of
from .plain import dump
from .printed import open_printed
from .user_code import CoroutineType


class Call:
    """One of several calls, with the state that the calls do not share."""

    def __init__(self, header, channel):
        self.number = header["id"]
        self.channel = channel
        self.context = header.get("context") or {}
        self.room = header.get("log_room", 0)
        self.output_bytes_max = header["output_bytes_max"]
        self.beats = Beats()
        self.streams = {}
        self.used = [0, 0, 0]  # CPU microseconds, blocks read, blocks written
        self.begun = self.told = False
        self.task = None

    def named(self, header):
        """Return a header that names this call."""
        return header[:-1] + b',"c":%d}' % self.number

    def beat(self, body):
        self.channel.beat(body, self.named(BEAT))

    def stream(self, descriptor):
        found = self.streams.get(descriptor)
        if found is None:
            found = self.streams[descriptor] = open_printed(self.channel, descriptor)
        return found

    def cancel(self):
        self.told = True
        if self.begun:  # cancelled earlier, it would end without a reply
            self.task.cancel()


class Routed(io.TextIOBase):
    """A standard stream that writes to the stream of the calling call.

    Outside of any call it writes to the descriptor.
    """

    def __init__(self, common, current):
        super().__init__()
        self.common = common
        self.current = current

    def _own(self):
        call = self.current()
        return self.common if call is None else call.stream(self.common.fileno())

    def write(self, text):
        return self._own().write(text)

    def flush(self):
        self._own().flush()

    def writable(self):
        return True

    def fileno(self):
        return self.common.fileno()

    def reconfigure(self, **options):
        self._own().reconfigure(**options)

    @property
    def buffer(self):
        return self._own().buffer

    @property
    def name(self):
        return self.common.buffer.raw.name

    encoding = property(lambda self: "utf-8")
    errors = property(lambda self: "backslashreplace")


def share_environment(current):
    """Make `os.environ` show each call its own variables; the object stays the same."""

    class Environment(type(os.environ)):
        def __getitem__(self, name):
            call = current()
            if call is not None and name in call.context:
                return call.context[name]
            return super().__getitem__(name)

        def __iter__(self):
            yield from super().__iter__()
            call = current()
            yield from () if call is None else call.context

        def __len__(self):
            call = current()
            return super().__len__() + (0 if call is None else len(call.context))

    os.environ.__class__ = Environment


class Shares:
    """Divides the usage of the process equally among the calls that ran meanwhile."""

    def __init__(self):
        self.before = self._counted()

    def _counted(self):
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (
            cpu_us_of(own) + cpu_us_of(children),
            own.ru_inblock + children.ru_inblock,
            own.ru_oublock + children.ru_oublock,
        )

    def divide(self, calls):
        """Charge what was used since the last time to these calls."""
        now = self._counted()
        for call in calls:
            for at, (before, after) in enumerate(zip(self.before, now)):
                call.used[at] += (after - before) / len(calls)
        self.before = now


class Together:
    """Runs several concurrent calls of one `async def` on one event loop.

    A call's state is in its context, which the tasks that it creates inherit, and the threads that
    asyncio starts for it.
    """

    def __init__(self, agent):
        import asyncio
        import contextvars

        self.agent, self.node, self.channel = agent, agent.node, agent.channel
        self.asyncio, self.new_context = asyncio, contextvars.copy_context
        self.variable = contextvars.ContextVar("qflow_call", default=None)
        self.loop = self.node.loop = asyncio.new_event_loop()
        self.calls = {}
        self.shares = Shares()
        current = self.variable.get
        self.channel.current = BEATS.current = current
        sys.stdout = sys.__stdout__ = Routed(sys.stdout, current)
        sys.stderr = sys.__stderr__ = Routed(sys.stderr, current)
        share_environment(current)

    def serve(self):
        self.loop.add_reader(self.channel.descriptor, self._readable)
        self.loop.run_forever()

    def _readable(self):
        if not self.channel._more(self.channel.missing):
            self.loop.stop()
            return
        while True:
            frame = self.channel.whole()
            if frame is None:
                return
            header, body = frame
            if header["op"] == "call":
                self._begin(header, body)
            elif header["op"] == "cancel" and header["id"] in self.calls:
                self.calls[header["id"]].cancel()

    def _begin(self, header, body):
        call = Call(header, self.channel)
        self.shares.divide(self.calls.values())
        self.calls[call.number] = call
        call.beats.begin(call, call.context.get("QFLOW_PROGRESS", ""))
        context = self.new_context()
        context.run(self.variable.set, call)
        call.task = context.run(self.loop.create_task, self._run(call, header, body))

    async def _run(self, call, header, body):
        call.begun = True
        texts, error = [], None
        began = entered = left = time.perf_counter_ns()
        try:
            if call.told:
                raise self.asyncio.CancelledError
            positional, keyword = self.node.decode(header, body)
            entered = time.perf_counter_ns()
            value = self.node.main(*positional, **keyword)
            if isinstance(value, CoroutineType):
                value = await value
            left = time.perf_counter_ns()
            texts = self.node.encode(value)
            value = positional = keyword = None
            error = too_large(sum(len(text) for _, text in texts), call.output_bytes_max)
        except BaseException as problem:
            if entered != began and left == began:
                left = time.perf_counter_ns()
            if call.told and isinstance(problem, self.asyncio.CancelledError):
                error = plain_error("cancelled", "stopped by the runner")
            else:
                error = self.agent.describe_problem(problem)
        done = time.perf_counter_ns()
        for stream in call.streams.values():
            try:
                stream.flush()
            except BaseException:
                pass
        call.beats.end(error is not None)
        call.room = 0  # output after the call belongs to none
        user_us = max(0, left - entered) // 1000
        self._answer(call, texts, error, (user_us, max(0, (done - began) // 1000 - user_us)))

    def _answer(self, call, texts, error, spent):
        self.shares.divide(self.calls.values())
        del self.calls[call.number]
        cpu_us, read, written = call.used
        reply = {
            "op": "result",
            "id": call.number,
            "recycle": self._left_behind(),
            "quiet": not self.calls,
            "usage": {
                "cpu_us": int(cpu_us),
                "max_rss_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                "wall_us": spent[0],
                "serialization_us": spent[1],
                "io": [int(read) * 512, int(written) * 512],
            },
        }
        if error is not None:
            reply["error"] = error
            return self.channel.write(reply)
        sizes = ",".join(["[%s,%d]" % (name, len(text)) for name, text in texts])
        head = '%s,"outputs":[%s]}' % (dump(reply)[:-1], sizes)
        return self.channel.write_text(head, [text for _, text in texts])

    def _left_behind(self):
        """Return what calls left; while some still run, only what none of them may change."""
        try:
            if self.calls:
                return self.agent.residue.changed()
            own = self.asyncio.current_task(self.loop)
            if any(task is not own for task in self.asyncio.all_tasks(self.loop)):
                return "asyncio tasks"
            return self.agent.residue.found()
        except BaseException:
            return "unknown state"
