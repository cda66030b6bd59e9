"""Temporary folders: what calls leave there takes space from later ones."""

import os

_LEFT_FILES_MAX = 256
# No thread can write files in memory faster than this, several times what real machines do.
_FILLED_BYTES_PER_NS = 64
_FILE_NS = 200


class Rooms:
    """The sandbox's own temporary folders, where leftovers of calls take space from later ones."""

    def __init__(self, places=()):
        self.places = [place for place in places if os.path.isdir(place)]
        # If they are not mounts of their own, their free space depends on the whole machine.
        self.sized = [place for place in self.places if os.path.ismount(place)]
        self.settle()

    def settle(self):
        """Treat what is there now as part of the loaded code, to be kept."""
        self.kept = [set(os.listdir(place)) for place in self.places]
        self.floors = []
        self.sure_ns = 0  # how long calls may work before a folder can be crowded
        for place in self.sized:
            room = os.statvfs(place)
            blocks, files = room.f_bfree - room.f_blocks // 8, room.f_ffree - room.f_files // 8
            self.floors.append((place, blocks, files))

    def crowded(self, worked_ns=None):
        """Return whether calls left more than an eighth of a folder's space filled.

        `worked_ns` is how long a single thread has worked since the last check. The kernel is not
        asked before that was enough to fill the remaining space: that saves many checks of short
        calls.
        """
        if worked_ns is not None and worked_ns < self.sure_ns:
            self.sure_ns -= worked_ns
            return False
        sure_ns = 1 << 62
        for place, blocks, files in self.floors:
            room = os.statvfs(place)
            if room.f_bfree < blocks or room.f_ffree < files:
                self.sure_ns = 0
                return True
            filled_ns = (room.f_bfree - blocks) * room.f_frsize // _FILLED_BYTES_PER_NS
            sure_ns = min(sure_ns, filled_ns, (room.f_ffree - files) * _FILE_NS)
        self.sure_ns = sure_ns
        return False

    def empty(self):
        """Remove what a call left; False if that is too much, or fails."""
        left = _LEFT_FILES_MAX
        for place, kept in zip(self.places, self.kept):
            for name in os.listdir(place):
                if name not in kept:
                    left = removed(os.path.join(place, name), left)
        return left > 0


def removed(path, left):
    """Remove a file or folder; return how many more may be removed, 0 after an error."""
    if left <= 0:
        return 0
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            with os.scandir(path) as entries:
                for entry in entries:
                    left = removed(entry.path, left)
                    if left <= 0:
                        return 0
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError:
        return 0
    return left - 1


ROOMS = Rooms()
