"""Resource usage of a call, as counted by the kernel."""

import os
import resource


class Meter:
    """Measures one call: this process, and the children that it waited for."""

    def __init__(self, clear_refs):
        self.clear_refs = clear_refs  # opened before privileges were dropped
        self.begin()

    def begin(self):
        """Restart from the current counters."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.peak_kb = own.ru_maxrss
        self.children_us = cpu_us_of(children)
        self.children_peak_kb = children.ru_maxrss
        self.children_blocks = (children.ru_inblock, children.ru_oublock)
        self.blocks = self._blocks(own)

    def _blocks(self, own):
        read, write = self.children_blocks
        return own.ru_inblock + read, own.ru_oublock + write

    def end(self, began_ns, spawned):
        """Return the fields of the reply, with few system calls if no process was started.

        `began_ns` is the process time when the call began; it counts the same as getrusage.
        """
        own = resource.getrusage(resource.RUSAGE_SELF)
        cpu_us = max(0, cpu_us_of(own) - began_ns // 1000)
        peak_kb = own.ru_maxrss
        more = ""
        if spawned:
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            children_us = cpu_us_of(children)
            cpu_us += children_us - self.children_us
            self.children_us = children_us
            self.children_blocks = (children.ru_inblock, children.ru_oublock)
            if children.ru_maxrss > self.children_peak_kb:  # else it is an earlier call's
                self.children_peak_kb = children.ru_maxrss
                peak_kb = max(peak_kb, children.ru_maxrss)
        blocks = self._blocks(own)
        if blocks != self.blocks:
            read, write = blocks[0] - self.blocks[0], blocks[1] - self.blocks[1]
            more = ',"io":[%d,%d]' % (read * 512, write * 512)
            self.blocks = blocks
        if own.ru_maxrss > self.peak_kb + 4096:
            self._forget_peak(own.ru_maxrss)
        return cpu_us, peak_kb, more

    def _forget_peak(self, peak_kb):
        """Reset the peak for the next call, where the kernel permits that."""
        self.peak_kb = peak_kb
        try:
            os.write(self.clear_refs, b"5")
            self.peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        except OSError:
            pass


def cpu_us_of(used):
    return int((used.ru_utime + used.ru_stime) * 1e6)
