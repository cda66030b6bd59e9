"""Temporary folders: what calls leave there the next ones have to do without."""

import os

_LEFT_FILES_MAX = 256
# No thread takes memory for files faster than this, several times what real machines do.
_FILLED_BYTES_PER_NS = 64
_FILE_NS = 200


class Rooms:
    """The sandbox's own temporary folders: what one call leaves there the next has to do without."""

    def __init__(self, places=()):
        self.places = [place for place in places if os.path.isdir(place)]
        # Elsewhere they are folders of the machine's, whose room says nothing of a call's.
        self.sized = [place for place in self.places if os.path.ismount(place)]
        self.settle()

    def settle(self):
        """What is there now belongs to what was loaded, and stays."""
        self.kept = [set(os.listdir(place)) for place in self.places]
        self.floors = []
        self.sure_ns = 0  # for how long calls may work before a room can be crowded
        for place in self.sized:
            room = os.statvfs(place)
            blocks, files = room.f_bfree - room.f_blocks // 8, room.f_ffree - room.f_files // 8
            self.floors.append((place, blocks, files))

    def crowded(self, worked_ns=None):
        """Whether calls left more than an eighth of a room filled.

        `worked_ns` is how long calls took since this was asked last, by one thread. The kernel is
        not asked before they could have filled what was left: that is many short calls.
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
        """Remove what a call left; False where that is too much, or does not go."""
        left = _LEFT_FILES_MAX
        for place, kept in zip(self.places, self.kept):
            for name in os.listdir(place):
                if name not in kept:
                    left = removed(os.path.join(place, name), left)
        return left > 0


def removed(path, left):
    """Remove a file or a folder with all in it; how many more may be removed, 0 after a fault."""
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
