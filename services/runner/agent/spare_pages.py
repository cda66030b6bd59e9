"""Pages of memory that are there before an array needs them."""

import os

SPARE_BYTES_MIN = 1 << 20
_SPARE_BYTES_MAX = 16 << 20  # little beside any limit of memory


class SparePages:
    """A file in memory whose pages are there before an array needs them.

    To get pages from the kernel takes several times as long as to fill them. They are got while no
    call waits: as many as the last array would have taken.
    """

    def __init__(self):
        self.wanted = 0  # bytes; 0 when there is nothing to get
        self.kept = None  # (descriptor, mapping)
        self.full = (
            None  # (mapping, parts) of the one that was handed over: they go after the answer
        )

    def filled(self, parts):
        """A descriptor of a file that holds these bytes, or None where that is not prepared."""
        size = sum(len(part) for part in parts)
        if self.kept is None or size > len(self.kept[1]):
            if SPARE_BYTES_MIN <= size <= _SPARE_BYTES_MAX:
                self.wanted = size
            return None
        (descriptor, mapping), self.kept = self.kept, None
        self.full, self.wanted = (mapping, parts), len(mapping)
        at = 0
        for part in parts:
            mapping[at : at + len(part)] = part
            at += len(part)
        try:
            if size < len(mapping):
                os.ftruncate(descriptor, size)
        except OSError:  # user code closed what is not its own
            return None
        return descriptor

    def due(self):
        """Whether there is anything to prepare."""
        return bool(self.wanted) or self.full is not None

    def prepare(self):
        if self.full is not None:
            self.full[0].close()
            self.full = None
        size, self.wanted = self.wanted, 0
        if not size:
            return
        import mmap

        self.drop()
        descriptor = os.memfd_create("value", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, size)
            at_once = getattr(mmap, "MAP_POPULATE", 0)  # from Python 3.10 on
            mapping = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | at_once)
        except (OSError, ValueError):  # a limit: then it is as without
            os.close(descriptor)
            return
        self.kept = descriptor, mapping

    def drop(self):
        if self.kept is not None:
            os.close(self.kept[0])
            self.kept[1].close()
            self.kept = None


SPARE = SparePages()
