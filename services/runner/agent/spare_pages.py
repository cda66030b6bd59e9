"""Memory pages allocated before an array needs them."""

import os

SPARE_BYTES_MIN = 1 << 20
_SPARE_BYTES_MAX = 16 << 20  # small compared with any memory limit


class SparePages:
    """An in-memory file whose pages are allocated before an array needs them.

    Getting pages from the kernel takes several times as long as filling them. They are allocated
    between calls: as many as the last array would have needed.
    """

    def __init__(self):
        self.wanted = 0  # bytes; 0 if there is nothing to allocate
        self.kept = None  # (descriptor, mapping)
        self.full = None  # (mapping, parts) of the file passed out: released after the reply

    def filled(self, parts):
        """Return a descriptor of a file with these bytes; None if it was not prepared."""
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
        except OSError:  # user code closed the descriptor
            return None
        return descriptor

    def due(self):
        """Return whether there is anything to prepare."""
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
        except (OSError, ValueError):  # a limit was reached: go on without spare pages
            os.close(descriptor)
            return
        self.kept = descriptor, mapping

    def drop(self):
        if self.kept is not None:
            os.close(self.kept[0])
            self.kept[1].close()
            self.kept = None


SPARE = SparePages()
