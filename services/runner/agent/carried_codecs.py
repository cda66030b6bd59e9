"""Codecs of values that travel as files: arrays, tables, pickles, paths and streams."""

import io
import os
import stat
import sys

from .carried import FILES, FORMATS, SUFFIXES
from .errors import clean, safe_text
from .plain import check_text
from .problems import Mismatch, describe, expected
from .spare_pages import SPARE, SPARE_BYTES_MIN


def _read_file(place):
    from pathlib import Path

    return Path(place)


def _read_ndarray(place):
    import numpy

    try:
        # Private copy-on-write pages: only what the node writes to is copied.
        array = numpy.lib.format.open_memmap(place, mode="c").view(numpy.ndarray)
    except ValueError:  # an empty array cannot be mapped; `load` reports anything else
        return numpy.load(place, allow_pickle=False)
    FILES.mapped.append(array)
    return array


def _read_arrow(place):
    import pyarrow

    return pyarrow.ipc.open_file(pyarrow.memory_map(place)).read_all()


def _read_pandas(place):
    return _read_arrow(place).to_pandas()


def _read_polars(place):
    import polars

    return polars.read_ipc(place)  # memory-mapped unless compressed


def _read_pickle(place):
    import pickle

    with open(place, "rb") as stream:
        return pickle.load(stream)  # noqa: S301 - of the same run, in a sandbox


def _write_ndarray(value, stream):
    import numpy

    if not isinstance(value, numpy.ndarray):
        raise expected("numpy.ndarray", value)
    if value.dtype.hasobject:
        raise Mismatch("an array of Python objects cannot be transferred", "serialization_error")
    numpy.lib.format.write_array(stream, value, allow_pickle=False)


def _ndarray_in_place(value):
    """Return an array's file as a descriptor, built in spare pages; None if it must be written."""

    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray:
        return None
    if value.dtype.hasobject or not value.flags.c_contiguous:
        return None
    if value.nbytes < SPARE_BYTES_MIN:  # for small arrays new pages cost nothing
        return None
    form, header = numpy.lib.format, io.BytesIO()
    try:
        form.write_array_header_1_0(header, form.header_data_from_array_1_0(value))
    except ValueError:  # a table with too many columns
        return None
    return SPARE.filled([header.getvalue(), value.reshape(-1).view("u1")])


def _write_arrow(value, stream):
    import pyarrow

    if not isinstance(value, pyarrow.Table):
        raise expected("pyarrow.Table", value)
    with pyarrow.ipc.new_file(stream, value.schema) as writer:
        writer.write_table(value)


def _write_pandas(value, stream):
    import pandas
    import pyarrow

    if not isinstance(value, pandas.DataFrame):
        raise expected("pandas.DataFrame", value)
    _write_arrow(pyarrow.Table.from_pandas(value), stream)


def _write_polars(value, stream):
    import polars

    if not isinstance(value, polars.DataFrame):
        raise expected("polars.DataFrame", value)
    value.write_ipc(stream)


def _write_pickle(value, stream):
    import pickle

    pickle.dump(value, stream, protocol=5)


_READERS = {
    "file": _read_file,
    "ndarray": _read_ndarray,
    "arrow": _read_arrow,
    "pandas": _read_pandas,
    "polars": _read_polars,
    "pickle": _read_pickle,
}
_WRITERS = {
    "ndarray": _write_ndarray,
    "arrow": _write_arrow,
    "pandas": _write_pandas,
    "polars": _write_polars,
    "pickle": _write_pickle,
}


def carried_decoder(tag):
    read = _READERS[tag]

    def decode(plain):
        place = FILES.place(plain, tag)
        try:
            return read(place)
        except Mismatch:
            raise
        except ImportError as problem:
            raise Mismatch("%s; declare the package" % safe_text(problem, 200)) from None
        except MemoryError:
            raise
        except Exception as problem:
            raise Mismatch(
                "the file holds no %s: %s" % (tag, safe_text(problem, 500)), "serialization_error"
            ) from None

    return decode


def carried_encoder(tag):
    if tag == "file":
        return _encode_path
    write = _WRITERS[tag]
    form = FORMATS.get(tag, "arrow")

    def encode(value):
        descriptor = _ndarray_in_place(value) if tag == "ndarray" else None
        if descriptor is not None:
            return FILES.hand_over(descriptor, form, "value" + SUFFIXES[form])
        descriptor = os.memfd_create("value", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as stream:
                write(value, stream)
        except BaseException as problem:
            os.close(descriptor)
            if isinstance(problem, ImportError):
                raise Mismatch("%s; declare the package" % safe_text(problem, 200)) from None
            if isinstance(problem, (Mismatch, MemoryError)) or not isinstance(problem, Exception):
                raise
            raise Mismatch(
                "%s cannot be written as %s: %s" % (describe(value), form, safe_text(problem, 500)),
                "serialization_error",
            ) from None
        return FILES.hand_over(descriptor, form, "value" + SUFFIXES[form])

    return encode


def _encode_path(value):
    if type(value) is dict and type(value.get("$file")) is str:
        return {"$file": check_text(value["$file"])}
    name = ""
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        path = os.fsdecode(path) if isinstance(path, bytes) else path
        for file_id, (place, _) in FILES.given.items():
            if path == place:
                return {"$file": file_id}  # unchanged, as it was given
        name = os.path.basename(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as problem:
            raise Mismatch(
                "the file cannot be opened: %s" % safe_text(problem, 500), "serialization_error"
            ) from None
    elif callable(getattr(value, "getbuffer", None)):
        descriptor = os.memfd_create("value", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(value.getbuffer())
    elif callable(getattr(value, "fileno", None)):
        try:
            if callable(getattr(value, "flush", None)) and not value.closed:
                value.flush()
            descriptor = os.dup(value.fileno())
        except (OSError, ValueError) as problem:
            raise Mismatch(
                "the stream has no open file: %s" % safe_text(problem, 500), "serialization_error"
            ) from None
        name = value.name if isinstance(getattr(value, "name", None), str) else ""
        name = os.path.basename(name)
    else:
        raise expected("a path or a binary stream", value)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Mismatch("only a regular file can leave a node", "serialization_error")
    return FILES.hand_over(descriptor, "", clean(name, 200))


def wants_stream(annotation):
    """Return whether a parameter asks for an open file instead of a path."""
    text = annotation if isinstance(annotation, str) else ""
    if not text:
        text = "%s.%s" % (
            getattr(annotation, "__module__", ""),
            getattr(annotation, "__qualname__", getattr(annotation, "_name", "")),
        )
        if getattr(annotation, "__origin__", None) is not None:
            text = str(annotation)
    return text.rpartition(".")[2].startswith(("BinaryIO", "IO[bytes]", "BufferedReader"))
