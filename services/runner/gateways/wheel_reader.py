"""Reads an untrusted wheel in a separate process: `wheel_reader.py <path>`.

Standard library only. Writes the wheel's metadata to stdout as JSON, or what is wrong with it.
Nothing is unpacked or run, and resource limits stop what would take too much.
"""

from __future__ import annotations

import json
import resource
import stat
import sys
import zipfile
import zlib

ENTRIES_MAX = 20_000
UNPACKED_BYTES_MAX = 1024 * 1024 * 1024
TEXT_BYTES_MAX = 1024 * 1024
NAME_CHARS_MAX = 400
# No legitimate file compresses better than this.
RATIO_MAX = 200
_RATIO_FROM_BYTES = 16 * 1024 * 1024
_MEMORY_BYTES_MAX = 512 * 1024 * 1024
_CPU_S_MAX = 30
_PIECE_BYTES = 1024 * 1024
_ENCRYPTED = 0x1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


class WheelError(Exception):
    """The file is not a valid wheel; the message says why."""


def main(path: str) -> dict[str, str]:
    """Return the texts of METADATA and WHEEL, and the name of their folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            check_entries(entries, packed_bytes=_size(archive))
            info = info_folder(entries)
            texts = {name: _text(archive, info, name) for name in ("METADATA", "WHEEL", "RECORD")}
            for entry in entries:
                _read_whole(archive, entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as problem:
        raise WheelError(f"it is not a valid zip file: {str(problem)[:200]}") from None
    except (UnicodeError, RuntimeError) as problem:
        raise WheelError(f"it cannot be read: {str(problem)[:200]}") from None
    return {"folder": info, "metadata": texts["METADATA"], "wheel": texts["WHEEL"]}


def check_entries(entries: list[zipfile.ZipInfo], *, packed_bytes: int) -> None:
    """Raise for entries that could mislead an installer."""
    if len(entries) > ENTRIES_MAX:
        raise WheelError(f"it has more than {ENTRIES_MAX} files")
    names: set[str] = set()
    unpacked = 0
    for entry in entries:
        _check_name(entry.filename)
        if entry.filename in names:
            raise WheelError(f"{entry.filename!r} is in it twice")
        names.add(entry.filename)
        _check_kind(entry)
        unpacked += entry.file_size
    if unpacked > UNPACKED_BYTES_MAX:
        raise WheelError(f"unpacked it takes more than {UNPACKED_BYTES_MAX} bytes")
    if unpacked > _RATIO_FROM_BYTES and unpacked > RATIO_MAX * packed_bytes:
        raise WheelError(f"it is packed more than {RATIO_MAX} times")
    for name in names:
        for folder in _folders_of(name):
            if folder in names:
                raise WheelError(f"{folder!r} is a file and a folder")
    _check_apart(entries)


def info_folder(entries: list[zipfile.ZipInfo]) -> str:
    """Return the name of the only `.dist-info` folder."""
    tops = {entry.filename.partition("/")[0] for entry in entries}
    found = sorted(top for top in tops if top.endswith(".dist-info"))
    if len(found) != 1:
        raise WheelError("it must have one .dist-info folder")
    return found[0]


def _check_name(name: str) -> None:
    parts = name.rstrip("/").split("/")
    if (
        len(name) > NAME_CHARS_MAX
        or not name.isprintable()
        or "\\" in name
        or ":" in name
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise WheelError(f"the name {name[:100]!r} is refused")


def _check_kind(entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise WheelError(f"{entry.filename!r} is a link or a device")
    if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
        raise WheelError(
            f"{entry.filename!r} is compressed by a method that installers do not support"
        )


def _check_apart(entries: list[zipfile.ZipInfo]) -> None:
    """Raise if entries overlap: that lets a small file unpack to any size."""
    end = 0
    for entry in sorted(entries, key=lambda each: each.header_offset):
        if entry.header_offset < end:
            raise WheelError(f"{entry.filename!r} overlaps another file")
        end = entry.header_offset + entry.compress_size


def _folders_of(name: str) -> list[str]:
    parts = name.rstrip("/").split("/")[:-1]
    return ["/".join(parts[: at + 1]) for at in range(len(parts))]


def _size(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    return archive.fp.seek(0, 2)


def _text(archive: zipfile.ZipFile, info: str, name: str) -> str:
    try:
        entry = archive.getinfo(f"{info}/{name}")
    except KeyError:
        raise WheelError(f"it has no {info}/{name}") from None
    # RECORD may be of any length; the others are written by people.
    if name != "RECORD" and entry.file_size > TEXT_BYTES_MAX:
        raise WheelError(f"{name} is longer than {TEXT_BYTES_MAX} bytes")
    return "" if name == "RECORD" else archive.read(entry).decode("utf-8")


def _read_whole(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry to its end, which verifies its size and checksum."""
    with archive.open(entry) as file:
        while file.read(_PIECE_BYTES):
            pass


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S_MAX, _CPU_S_MAX))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        answer = main(sys.argv[1])
    except WheelError as problem:
        answer = {"error": str(problem)}
    except MemoryError:
        answer = {"error": "it takes too much memory to read"}
    sys.stdout.write(json.dumps(answer))
