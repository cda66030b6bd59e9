"""The agent: loads one node version and calls it, once per frame, inside the sandbox.

One file, standard library only, any Python from 3.9 on; started as `python -I -S agent.pyc FD`.
It speaks framed messages on a descriptor of its own, so nothing that user code prints can be taken
for a result. It is not a boundary: the sandbox is. What it sends is checked again outside.

A frame is `!II` (length of the header, length of the body), a JSON header and the raw bytes of the
values, so that a value keeps the exact text it was produced as.
"""

# Of the modules in C, and of those that a Python has loaded by itself: what `json`, `re`, `enum` and `signal` import
# is most of what a sandbox takes to start, and many nodes need none of it.
import _json
import _signal
import _struct as struct
import _thread
import fcntl
import gc
import io
import math
import os
import resource
import stat
import sys
import time
from _collections import deque

PROTOCOL = 1
MAX_DEPTH = 64
MAX_INT_BITS = 14285  # 10**4300 has 14,285 bits: no shorter integer can have more than 4,300 digits
MAX_INT_DIGITS = 4300
MAX_EXACT_FLOAT_INT = 2**53
MAX_MESSAGE = 4096
MAX_TRACE = 32768
MAX_CAUSES = 8
MAX_FRAMES = 24
LOG_FRAME_BYTES = 65536
LOG_FRAME_COST = 64  # so that lines of a few bytes have an end, too
PROGRESS_BYTES_MAX = 8192
BEAT_SPACING_S = 0.1
MODULE = "qflow_node"
FILENAME = "node.py"
AGENT = b""  # this file, read while it can be
_HEAD = struct.Struct("!II")
_BEAT = b'{"op":"beat"}'
# The texts that `qflow.types` takes for values: what leaves a node and what enters one are the same.
_DATE = r"\d{4}-\d\d-\d\d"
_OFFSET = r"Z|[+-]\d\d:\d\d(:\d\d(\.\d{6})?)?"
_TIME = r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?(%s)?" % _OFFSET


class Pattern:
    """A regular expression that is compiled when it is first asked."""

    def __init__(self, text):
        self.text = text

    def fullmatch(self, value):
        import re

        self.fullmatch = re.compile(self.text, re.ASCII).fullmatch
        return self.fullmatch(value)


_DATE_TEXT = Pattern(_DATE)
_TIME_TEXT = Pattern(_TIME)
_DATETIME_TEXT = Pattern("%s[T ]%s" % (_DATE, _TIME))
_DECIMAL_TEXT = Pattern(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,6})?")
_DECIMAL_CHARS_MAX = 4301  # 4,300 digits and a sign
# Types whose values travel as files: see there.
CARRIED = ("file", "ndarray", "arrow", "pandas", "polars", "pickle")
_WATCHED_SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGALRM, _signal.SIGCHLD)


ModuleType, FunctionType = type(sys), type(lambda: 0)


async def _nothing():
    pass


_made = _nothing()
CoroutineType = type(_made)
_made.close()


class Mismatch(Exception):
    """A value that is not of its declared type; `kind` is the error type to report."""

    def __init__(self, message, kind="type_error"):
        super().__init__(message)
        self.kind = kind
        self.path = ""
        self.input = ""  # the parameter that it was for

    def under(self, step):
        self.path = "%s%s" % (step, self.path)
        return self

    def text(self, root):
        return "%s%s: %s" % (root, self.path, self.args[0])


class Terminated(BaseException):
    """SIGTERM came: the attempt is cancelled or out of time. Not an Exception, so it gets through."""


# ---------------------------------------------------------------- plain JSON


def _refuse_constant(name):
    raise Mismatch("%s is not JSON" % name, "serialization_error")


_BLANK = " \t\n\r"


class Scanned:
    """What the scanner in C asks for: strict JSON, as `json.JSONDecoder` reads it."""

    strict = True
    object_hook = array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)

    def __init__(self, object_pairs_hook=None):
        self.object_pairs_hook = object_pairs_hook
        self.scan = _json.make_scanner(self)

    def decode(self, text):
        """The value that a text is; raises ValueError."""
        start = len(text) - len(text.lstrip(_BLANK))
        try:
            value, end = self.scan(text, start)
        except (
            StopIteration,
            SystemError,
        ):  # the latter, where `json` is not there to be raised of
            raise ValueError("not JSON") from None
        if text[end:].strip(_BLANK):
            raise ValueError("not JSON: something follows it")
        return value


_parse = Scanned().decode


def _refuse_twice(pairs):
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Mismatch("a key stands twice in an object", "serialization_error")
    return made


_parse_pairs = Scanned(_refuse_twice).decode


def _refuse_other(value):
    raise TypeError("%s is not JSON" % describe(value))


_encode_chunks = _json.make_encoder(
    None, _refuse_other, _json.encode_basestring, None, ":", ",", False, False, False
)


def _dump(value):
    """JSON text without blanks, of plain values; neither NaN nor Infinity."""
    return "".join(_encode_chunks(value, 0))


def describe(value):
    """The kind of a value in a word: never its content, never its repr, which may run code."""
    return type(value).__name__


def _expected(name, value):
    return Mismatch("expected %s, got %s" % (name, describe(value)))


def _index(position):
    return "[%d]" % position


def _key(name):
    return ".%s" % name[:100]


def _check_int(value):
    if -MAX_EXACT_FLOAT_INT < value < MAX_EXACT_FLOAT_INT:
        return value
    if value.bit_length() >= MAX_INT_BITS and abs(value) >= 10**MAX_INT_DIGITS:
        raise Mismatch("the integer has more than 4300 digits", "serialization_error")
    return value


def _check_float(value):
    if not math.isfinite(value):
        raise Mismatch("NaN and Infinity are not JSON", "serialization_error")
    return value


def _is_decimal(text):
    return len(text) <= _DECIMAL_CHARS_MAX and bool(_DECIMAL_TEXT.fullmatch(text))


def _check_text(value):
    if "\x00" in value:
        raise Mismatch("the text holds a NUL character", "serialization_error")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Mismatch("the text holds a lone surrogate", "serialization_error") from None
    return value


def _unwrap_numpy(value):
    """numpy's scalars are what much numeric code returns; `.item()` gives the plain value."""
    kind = type(value)
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _plain_key(key):
    if type(key) is not str:
        raise Mismatch(
            "a key is %s; without a declared type keys are str" % describe(key),
            "serialization_error",
        )
    return _check_text(key)


def parse_text(text):
    """JSON text that is itself a value: held to all that a value is held to."""
    return encode_any(_parse_pairs(text))


def encode_any(value, depth=0):
    """Plain JSON only: what a reader in any language gets back as it was."""
    if depth > MAX_DEPTH:
        raise Mismatch("nested deeper than 64, or holds itself", "serialization_error")
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        return _check_text(value)
    if kind is int:
        return _check_int(value)
    if kind is float:
        return _check_float(value)
    if kind is list or kind is tuple:
        out = []
        for position, item in enumerate(value):
            try:
                out.append(encode_any(item, depth + 1))
            except Mismatch as problem:
                raise problem.under(_index(position))
        return out
    if kind is dict:
        out = {}
        for key, item in value.items():
            text = _plain_key(key)
            try:
                out[text] = encode_any(item, depth + 1)
            except Mismatch as problem:
                raise problem.under(_key(text))
        return out
    plain = _unwrap_numpy(value)
    if plain is not value:
        return encode_any(plain, depth)
    if isinstance(value, str):
        return _check_text(str.__str__(value))
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return _check_int(int(value))
    if isinstance(value, float):
        return _check_float(float(value))
    if isinstance(value, dict):
        return encode_any(dict(value), depth)
    raise Mismatch(
        "%s cannot be carried as JSON; declare its type or return plain values" % describe(value),
        "serialization_error",
    )


# ---------------------------------------------------------------- codecs by declared type
# decoder(type) gives plain JSON -> value; encoder(type) gives value -> plain JSON. Both are compiled
# once per node version into closures.


class Codecs:
    """Compiles codecs; classes are looked up by name in the user's own module."""

    carried = CARRIED

    def __init__(self, namespace):
        self.namespace = namespace
        self.hashed = False  # whether what is compiled stands in a set or a key

    def find(self, name):
        found = self.namespace
        for position, part in enumerate(name.split(".")):
            found = found.get(part) if position == 0 else getattr(found, part, None)
            if found is None:
                raise Mismatch("the class %s is not defined in the node's code" % name)
        return found

    def decoder(self, kind, depth=0):
        if depth > MAX_DEPTH:
            raise Mismatch("the declared type is nested deeper than 64")
        make = getattr(self, "_decode_%s" % kind.get("t"), None)
        if make is None:
            raise Mismatch("values of type %s cannot be passed to a node" % type_name(kind))
        return make(kind, depth + 1)

    def encoder(self, kind, depth=0):
        if depth > MAX_DEPTH:
            raise Mismatch("the declared type is nested deeper than 64")
        make = getattr(self, "_encode_%s" % kind.get("t"), None)
        if make is None:
            raise Mismatch(
                "values of type %s cannot leave a node" % type_name(kind), "serialization_error"
            )
        return make(kind, depth + 1)

    def hashed_decoder(self, kind, depth):
        outer, self.hashed = self.hashed, True
        try:
            return self.decoder(kind, depth)
        finally:
            self.hashed = outer

    # -- scalars

    def _decode_any(self, kind, depth):
        return as_hashable if self.hashed else _same

    def _encode_any(self, kind, depth):
        return encode_any

    def _decode_int(self, kind, depth):
        def decode(plain):
            if type(plain) is not int:
                raise _expected("int", plain)
            return plain

        return decode

    def _encode_int(self, kind, depth):
        def encode(value):
            if type(value) is int:
                return _check_int(value)
            value = _unwrap_numpy(value)
            if isinstance(value, bool) or not isinstance(value, int):
                raise _expected("int", value)
            return _check_int(int(value))

        return encode

    def _decode_float(self, kind, depth):
        def decode(plain):
            if type(plain) is float:
                return _check_float(plain)
            if type(plain) is int:
                return exact_float(plain)
            raise _expected("float", plain)

        return decode

    def _encode_float(self, kind, depth):
        def encode(value):
            if type(value) is float:
                return _check_float(value)
            value = _unwrap_numpy(value)
            if isinstance(value, float):
                return _check_float(float(value))
            if isinstance(value, int) and not isinstance(value, bool):
                return exact_float(int(value))
            raise _expected("float", value)

        return encode

    def _decode_bool(self, kind, depth):
        def decode(plain):
            if plain is True or plain is False:
                return plain
            raise _expected("bool", plain)

        return decode

    def _encode_bool(self, kind, depth):
        def encode(value):
            if value is True or value is False:
                return value
            plain = _unwrap_numpy(value)
            if plain is True or plain is False:
                return plain
            raise _expected("bool", value)

        return encode

    def _decode_str(self, kind, depth):
        def decode(plain):
            if type(plain) is not str:
                raise _expected("str", plain)
            return plain

        return decode

    def _encode_str(self, kind, depth):
        def encode(value):
            if type(value) is str:
                return _check_text(value)
            if isinstance(value, str):
                return _check_text(str.__str__(value))
            raise _expected("str", value)

        return encode

    def _decode_none(self, kind, depth):
        def decode(plain):
            if plain is not None:
                raise _expected("None", plain)

        return decode

    _encode_none = _decode_none

    def _decode_bytes(self, kind, depth):
        import base64

        def decode(plain):
            if type(plain) is not str:
                raise _expected("bytes as base64 text", plain)
            try:
                return base64.b64decode(plain.encode("ascii"), validate=True)
            except ValueError:
                raise Mismatch("expected base64 text") from None

        return decode

    def _encode_bytes(self, kind, depth):
        import base64

        def encode(value):
            if not isinstance(value, (bytes, bytearray, memoryview)):
                raise _expected("bytes", value)
            return base64.b64encode(value).decode("ascii")

        return encode

    def _decode_complex(self, kind, depth):
        def decode(plain):
            if (
                type(plain) is not list
                or len(plain) != 2
                or any(type(part) not in (int, float) for part in plain)
            ):
                raise _expected("complex as [real, imaginary]", plain)
            return complex(exact_float(plain[0]), exact_float(plain[1]))

        return decode

    def _encode_complex(self, kind, depth):
        def encode(value):
            value = _unwrap_numpy(value)
            if not isinstance(value, complex):
                raise _expected("complex", value)
            return [_check_float(value.real), _check_float(value.imag)]

        return encode

    def _decode_decimal(self, kind, depth):
        from decimal import Decimal, InvalidOperation

        def decode(plain):
            if type(plain) is not str or not _is_decimal(plain):
                raise _expected("decimal as text", plain)
            try:
                return Decimal(plain)
            except InvalidOperation:
                raise Mismatch("expected a decimal as text") from None

        return decode

    def _encode_decimal(self, kind, depth):
        from decimal import Decimal

        def encode(value):
            if not isinstance(value, Decimal):
                raise _expected("Decimal", value)
            text = Decimal.__str__(value)
            if not _is_decimal(text):
                raise Mismatch(
                    "the Decimal is not finite, or beyond 4300 digits or an exponent of 6",
                    "serialization_error",
                )
            return text

        return encode

    def _decode_uuid(self, kind, depth):
        from uuid import UUID

        def decode(plain):
            if type(plain) is not str or len(plain) != 36:
                raise _expected("UUID as text", plain)
            try:
                return UUID(plain)
            except ValueError:
                raise Mismatch("expected a UUID as text") from None

        return decode

    def _encode_uuid(self, kind, depth):
        from uuid import UUID

        def encode(value):
            if not isinstance(value, UUID):
                raise _expected("UUID", value)
            return str(value)

        return encode

    def _iso_decoder(self, cls, name, pattern):
        def decode(plain):
            if type(plain) is not str or not pattern.fullmatch(plain):
                raise _expected("%s as ISO 8601 text" % name, plain)
            try:
                return cls.fromisoformat(plain_iso(plain))
            except ValueError:
                raise Mismatch("expected %s as ISO 8601 text" % name) from None

        return decode

    def _iso_encoder(self, check, name, pattern):
        def encode(value):
            if not check(value):
                raise _expected(name, value)
            text = value.isoformat()
            if not pattern.fullmatch(text):
                raise Mismatch(
                    "the %s has no ISO 8601 text that Python reads" % name, "serialization_error"
                )
            return text

        return encode

    def _decode_datetime(self, kind, depth):
        from datetime import datetime

        return self._iso_decoder(datetime, "datetime", _DATETIME_TEXT)

    def _encode_datetime(self, kind, depth):
        from datetime import datetime

        return self._iso_encoder(
            lambda value: isinstance(value, datetime), "datetime", _DATETIME_TEXT
        )

    def _decode_date(self, kind, depth):
        from datetime import date

        return self._iso_decoder(date, "date", _DATE_TEXT)

    def _encode_date(self, kind, depth):
        from datetime import date, datetime

        return self._iso_encoder(
            lambda value: isinstance(value, date) and not isinstance(value, datetime),
            "date",
            _DATE_TEXT,
        )

    def _decode_time(self, kind, depth):
        from datetime import time as clock_time

        return self._iso_decoder(clock_time, "time", _TIME_TEXT)

    def _encode_time(self, kind, depth):
        from datetime import time as clock_time

        return self._iso_encoder(lambda value: isinstance(value, clock_time), "time", _TIME_TEXT)

    def _decode_timedelta(self, kind, depth):
        from datetime import timedelta

        def decode(plain):
            if type(plain) not in (int, float):
                raise _expected("timedelta as seconds", plain)
            try:
                return timedelta(seconds=plain)
            except OverflowError:
                raise Mismatch("the timedelta is out of range") from None

        return decode

    def _encode_timedelta(self, kind, depth):
        from datetime import timedelta

        def encode(value):
            if not isinstance(value, timedelta):
                raise _expected("timedelta", value)
            if value.microseconds == 0:
                return value.days * 86400 + value.seconds
            seconds = value.total_seconds()
            if timedelta(seconds=seconds) != value:
                raise Mismatch(
                    "the timedelta is too long for its microseconds", "serialization_error"
                )
            return seconds

        return encode

    def _decode_carried(self, kind, depth):
        return carried_decoder(kind["t"])

    def _encode_carried(self, kind, depth):
        return carried_encoder(kind["t"])

    _decode_file = _decode_ndarray = _decode_arrow = _decode_carried
    _decode_pandas = _decode_polars = _decode_pickle = _decode_carried
    _encode_file = _encode_ndarray = _encode_arrow = _encode_carried
    _encode_pandas = _encode_polars = _encode_pickle = _encode_carried

    # -- containers

    def _items_decoder(self, kind, depth, build, name):
        compiled = self.hashed_decoder if build in (set, frozenset) else self.decoder
        item = compiled(kind.get("item") or {"t": "any"}, depth)

        def decode(plain):
            if type(plain) is not list:
                raise _expected(name, plain)
            out = []
            try:
                for element in plain:
                    out.append(item(element))
            except Mismatch as problem:
                raise problem.under(_index(len(out)))
            if build is list:
                return out
            try:
                built = build(out)
            except TypeError:
                raise Mismatch("an element of the %s is not hashable" % name) from None
            if len(built) != len(out):
                raise Mismatch("two elements of the %s are equal" % name)
            return built

        return decode

    def _items_encoder(self, kind, depth, classes, name, ordered=True):
        item = self.encoder(kind.get("item") or {"t": "any"}, depth)

        def encode(value):
            if not isinstance(value, classes):
                raise _expected(name, value)
            out = []
            try:
                for element in value:
                    out.append(item(element))
            except Mismatch as problem:
                raise problem.under(_index(len(out)))
            if not ordered:  # a set has no order: give it one, so that equal sets have equal texts
                try:
                    out.sort()
                except TypeError:
                    out.sort(key=_dump)
            return out

        return encode

    def _decode_list(self, kind, depth):
        return self._items_decoder(kind, depth, list, "list")

    def _encode_list(self, kind, depth):
        return self._items_encoder(kind, depth, _SEQUENCES, "list")

    def _decode_set(self, kind, depth):
        return self._items_decoder(kind, depth, set, "set")

    def _encode_set(self, kind, depth):
        return self._items_encoder(kind, depth, _SETS, "set", ordered=False)

    def _decode_frozenset(self, kind, depth):
        return self._items_decoder(kind, depth, frozenset, "frozenset")

    def _encode_frozenset(self, kind, depth):
        return self._items_encoder(kind, depth, _SETS, "frozenset", ordered=False)

    def _decode_tuple(self, kind, depth):
        if "items" not in kind:
            return self._items_decoder(kind, depth, tuple, "tuple")
        items = [self.decoder(item, depth) for item in kind["items"]]

        def decode(plain):
            if type(plain) is not list or len(plain) != len(items):
                raise _expected("a tuple of %d" % len(items), plain)
            return tuple(_each(items, plain))

        return decode

    def _encode_tuple(self, kind, depth):
        if "items" not in kind:
            return self._items_encoder(kind, depth, tuple, "tuple")
        items = [self.encoder(item, depth) for item in kind["items"]]

        def encode(value):
            if not isinstance(value, tuple) or len(value) != len(items):
                raise _expected("a tuple of %d" % len(items), value)
            return _each(items, value)

        return encode

    def _decode_dict(self, kind, depth):
        value_of = self.decoder(kind.get("value") or {"t": "any"}, depth)
        key_of = self._key_decoder(kind.get("key") or {"t": "str"}, depth)

        def decode(plain):
            if type(plain) is not dict:
                raise _expected("dict", plain)
            out = {}
            for key, item in plain.items():
                try:
                    out[key_of(key)] = value_of(item)
                except Mismatch as problem:
                    raise problem.under(_key(key))
            if len(out) != len(plain):
                raise Mismatch("two keys are equal")
            return out

        return decode

    def _encode_dict(self, kind, depth):
        value_of = self.encoder(kind.get("value") or {"t": "any"}, depth)
        key_of = self._key_encoder(kind.get("key") or {"t": "str"}, depth)

        def encode(value):
            if not isinstance(value, dict):
                raise _expected("dict", value)
            out = {}
            for key, item in value.items():
                text = key_of(key)
                try:
                    out[text] = value_of(item)
                except Mismatch as problem:
                    raise problem.under(_key(text))
            if len(out) != len(value):
                raise Mismatch("two keys have the same text", "serialization_error")
            return out

        return encode

    def _key_decoder(self, kind, depth):
        """A key is the text of its value, or its JSON text where it is none: `1`, `null`, `[1,2]`."""
        tag = kind.get("t")
        if tag in ("str", "any"):
            return _same
        if tag == "union":
            options = [self._key_decoder(each, depth + 1) for each in keys_by_precision(kind)]
            return _first_of(options, type_name(kind))
        decode = self.hashed_decoder(kind, depth)
        if tag in _TEXT_KINDS:
            return decode

        def decode_key(key):
            if tag in ("literal", "enum"):
                try:
                    return decode(key)
                except Mismatch:
                    pass
            try:
                if key.strip() == key:
                    found = decode(parse_text(key))
                    hash(found)
                    return found
            except (ValueError, TypeError, RecursionError):
                pass
            raise Mismatch("the key is not %s" % type_name(kind))

        return decode_key

    def _key_encoder(self, kind, depth):
        tag = kind.get("t")
        if tag == "any":
            return _plain_key
        if tag == "union":
            members = [
                (option, self._key_encoder(option, depth + 1), self._key_decoder(option, depth + 1))
                for option in keys_by_precision(kind)
            ]
            return _union_encoder(kind, members)
        encode = self.encoder(kind, depth)

        def encode_key(key):
            plain = encode(key)
            return plain if type(plain) is str else _dump(plain)

        if tag not in ("literal", "enum"):
            return encode_key
        decode = self._key_decoder(kind, depth)

        def encode_constant(key):
            text = encode_key(key)
            found = decode(text)
            if type(found) is not type(key) or found != key:
                raise Mismatch(
                    "two keys of %s have the same text" % type_name(kind), "serialization_error"
                )
            return text

        return encode_constant

    # -- choices

    def _decode_union(self, kind, depth):
        options = [self.decoder(option, depth) for option in by_precision(kind["any_of"])]
        return _first_of(options, type_name(kind))

    def _encode_union(self, kind, depth):
        options = by_precision(kind["any_of"])
        carried = any(option.get("t") in self.carried for option in options)
        if carried and not _apart(options, self.find):
            raise Mismatch(
                "in %s, what is in a file cannot be told from what is not" % type_name(kind),
                "serialization_error",
            )
        if _apart(options, self.find):
            members = [(option, self.encoder(option, depth), None) for option in options]
        else:
            members = [
                (option, self.encoder(option, depth), self.decoder(option, depth))
                for option in options
            ]
        return _union_encoder(kind, members)

    def _decode_literal(self, kind, depth):
        values = kind["values"]

        def decode(plain):
            for value in values:
                if type(value) is type(plain) and value == plain:
                    return plain
            raise Mismatch("expected one of the %d literal values" % len(values))

        return decode

    def _encode_literal(self, kind, depth):
        return self._decode_literal(kind, depth)

    def _decode_enum(self, kind, depth):
        import enum

        cls = self.find(kind["name"])
        combines = issubclass(cls, enum.Flag)

        def decode(plain):
            for member in cls:
                value = member.value
                if type(value) is type(plain) and value == plain:
                    return member
            if combines and type(plain) is int:
                try:
                    made = cls(plain)
                    if made.value == plain:  # Python 3.11.2 drops bits that no member has
                        return made
                except ValueError:
                    pass
            raise Mismatch("not a value of %s" % kind["name"])

        return decode

    def _encode_enum(self, kind, depth):
        cls = self.find(kind["name"])

        def encode(value):
            if not isinstance(value, cls):
                raise _expected(kind["name"], value)
            return encode_any(value.value)

        return encode

    # -- records

    def _decode_record(self, kind, depth):
        fields = [
            (field["name"], self.decoder(field["type"], depth), field.get("required", True))
            for field in kind["fields"]
        ]
        names = {field[0] for field in fields}
        build = self._record_builder(kind)

        def decode(plain):
            if type(plain) is not dict:
                raise _expected(kind.get("name") or "record", plain)
            out = {}
            for name, field, required in fields:
                if name in plain:
                    try:
                        out[name] = field(plain[name])
                    except Mismatch as problem:
                        raise problem.under(_key(name))
                elif required:
                    raise Mismatch("missing").under(_key(name))
            for name in plain:
                if name not in names:
                    raise Mismatch("unknown field").under(_key(name))
            return build(out)

        return decode

    def _record_builder(self, kind):
        how = kind.get("kind")
        if how == "typeddict":
            return lambda values: values
        cls = self.find(kind["name"])
        if how == "pydantic":
            validate = getattr(cls, "model_validate", None) or cls.parse_obj
            return lambda values: _built(validate, values)
        return lambda values: _built(lambda fields: cls(**fields), values)

    def _encode_record(self, kind, depth):
        fields = [
            (field["name"], self.encoder(field["type"], depth), field.get("required", True))
            for field in kind["fields"]
        ]
        name_of = kind.get("name") or "record"
        as_dict = kind.get("kind") == "typeddict"
        cls = dict if as_dict else self.find(kind["name"])
        names = {field[0] for field in fields}

        def encode(value):
            if not isinstance(value, cls):
                raise _expected(name_of, value)
            out = {}
            for name, field, required in fields:
                found = value.get(name, _ABSENT) if as_dict else getattr(value, name, _ABSENT)
                if found is _ABSENT:
                    if required:
                        raise Mismatch("missing").under(_key(name))
                    continue
                try:
                    out[name] = field(found)
                except Mismatch as problem:
                    raise problem.under(_key(name))
            if as_dict:
                for name in value:
                    if name not in names:
                        raise Mismatch("unknown field").under(_key(str(name)))
            return out

        return encode


_ABSENT = object()
# `Sequence`, `Iterable` and `deque` are lists to the declared types, and `AbstractSet` is a frozenset.
_SEQUENCES = (list, tuple, deque, range)
_SETS = (set, frozenset)
_TEXT_KINDS = ("bytes", "decimal", "uuid", "datetime", "date", "time")
_RANK = {
    "literal": 0,
    "none": 0,
    "bool": 1,
    "int": 2,
    "float": 3,
    "str": 4,
    "enum": 5,
    "record": 5,
    "list": 6,
    "tuple": 7,
    "set": 8,
    "frozenset": 8,
    "any": 10,
}


def by_precision(options):
    """The order in which members of a union read: `qflow.types.order` says it and why."""
    return sorted(options, key=lambda option: _RANK.get(option.get("t"), 9))


def keys_by_precision(kind):
    """Of what keys may be: each is a text, so `str` is what it is taken for where `str` stands."""
    return sorted(by_precision(kind["any_of"]), key=lambda option: option.get("t") != "str")


def _same(plain):
    return plain


def _first_of(options, name):
    def decode(plain):
        for option in options:
            try:
                return option(plain)
            except Mismatch:
                continue
        raise _expected(name, plain)

    return decode


def _union_encoder(kind, members):
    """Write by the member that a value is of; with decoders, only what is read back as it was."""
    # An enum or a record takes its own values alone, other members also those of subclasses.
    own_first = sorted(members, key=lambda member: member[0].get("t") not in ("enum", "record"))
    read = None if members[0][2] is None else [decode for _, _, decode in members]

    def encode(value):
        first = None
        written = []
        for option, encode_member, decode in own_first:
            try:
                plain = encode_member(value)
            except Mismatch as problem:
                if first is None or problem.kind == "serialization_error":
                    first = problem
                continue
            if read is None or _shape(_attempt(read, plain)) == _shape(value):
                return plain
            written.append((plain, option, decode))
        if written:
            return _unmistaken(value, written, read, kind)
        if first is not None and first.kind == "serialization_error":
            raise first
        raise _expected(type_name(kind), value)

    return encode


def _unmistaken(value, written, decoders, kind):
    """Choose, of what members wrote for a value of a subclass, what is read back as its own."""
    decoded = [_attempt([decode], plain) for plain, _, decode in written]
    own = range(len(written))
    for loose in (False, True):
        wanted = _shape(value, loose)
        same = [at for at in own if _shape(decoded[at], loose) == wanted]
        if same:
            own = same
            break
    for at in own:
        if _shape(_attempt(decoders, written[at][0])) == _shape(decoded[at]):
            return written[at][0]
    raise Mismatch(
        "in %s, this %s would be read back as %s; declare one of them"
        % (
            type_name(kind),
            type_name(written[own[0]][1]),
            describe(_attempt(decoders, written[own[0]][0])),
        ),
        "serialization_error",
    )


def _attempt(decoders, plain):
    for decode in decoders:
        try:
            return decode(plain)
        except Mismatch:
            continue
    return _ABSENT


def _shape(value, loose=False):
    """What a value is made of, by its classes; what is written alike and of one class is the same.

    Loosely, a value of a subclass is as one of the class that it is written as.
    """
    kind = type(value)
    if kind is str or value is None:
        return kind
    value = _unwrap_numpy(value)
    kind = type(value)
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return kind
    if loose:
        kind = next((base for base, classes in _WRITTEN_AS if isinstance(value, classes)), kind)
    if isinstance(value, dict):
        return kind, frozenset((key, _shape(key), _shape(value[key], loose)) for key in value)
    if isinstance(value, _SETS):
        return kind, frozenset(_shape(item, loose) for item in value)
    if isinstance(value, _SEQUENCES):
        return kind, tuple(_shape(item, loose) for item in value)
    return kind


# `float` holds the integers that are written for it.
_WRITTEN_AS = (
    (bool, bool),
    (float, (int, float)),
    (str, str),
    (bytes, (bytes, bytearray, memoryview)),
    (list, (list, deque, range)),
    (dict, dict),
)
_NUMBERS = frozenset((int, float))
_WRITES = {
    "none": frozenset((type(None),)),
    "bool": frozenset((bool,)),
    "int": frozenset((int,)),
    "float": frozenset((float,)),
    "timedelta": _NUMBERS,
    "str": frozenset((str,)),
    "dict": frozenset((dict,)),
    "record": frozenset((dict,)),
    **dict.fromkeys(CARRIED, frozenset((dict,))),
}
_WRITES.update(dict.fromkeys(_TEXT_KINDS, _WRITES["str"]))
_WRITES.update(dict.fromkeys(("list", "tuple", "set", "frozenset", "complex"), frozenset((list,))))
_WRITES["any"] = frozenset().union(*_WRITES.values())


def _writes(kind, find):
    """The kinds of JSON that values of a type are written as."""
    if kind.get("t") == "literal":
        return {type(value) for value in kind["values"]}
    if kind.get("t") == "enum":
        import enum

        cls = find(kind["name"])
        # Lists no member of several bits, and none at all is a value.
        if issubclass(cls, enum.Flag):
            return {int}
        return {type(member.value) for member in cls}
    return _WRITES.get(kind.get("t"), _WRITES["any"])


def _apart(options, find):
    """Whether the members of a union are never taken for each other, by what JSON they are."""
    for at, later in enumerate(options):
        for earlier in options[:at]:
            reads = _NUMBERS if earlier.get("t") == "float" else _writes(earlier, find)
            if reads & _writes(later, find) and not (_as_it_is(earlier) and _as_it_is(later)):
                return False
    return True


def _as_it_is(kind):
    """Whether values of a type are read as what JSON itself has, so that no reader differs."""
    tag = kind.get("t")
    if tag == "list":
        return _as_it_is(kind.get("item") or {"t": "any"})
    if tag == "dict":
        key = kind.get("key") or {"t": "str"}
        return key.get("t") in ("str", "any") and _as_it_is(kind.get("value") or {"t": "any"})
    return tag in ("literal", "none", "bool", "int", "str", "any")


def as_hashable(plain):
    """What no type is declared for, in a set or a key: an array can only have been a tuple."""
    return tuple(map(as_hashable, plain)) if type(plain) is list else plain


def _each(codecs, values):
    out = []
    try:
        for codec, value in zip(codecs, values):
            out.append(codec(value))
    except Mismatch as problem:
        raise problem.under(_index(len(out)))
    return out


def _built(build, values):
    try:
        return build(values)
    except Exception as problem:  # the user's own constructor refuses what the types allow
        raise Mismatch(
            "the class refused the value: %s" % safe_text(problem, 500), "type_error"
        ) from None


def type_name(kind):
    """A short name of a declared type, for messages."""
    tag = kind.get("t")
    if tag == "union":
        return " | ".join(type_name(option) for option in kind["any_of"])
    if tag in ("record", "enum", "named"):
        return str(kind.get("name"))
    return {"none": "None"}.get(tag, str(tag))


def exact_float(value):
    if type(value) is float:
        return _check_float(value)
    if not -MAX_EXACT_FLOAT_INT <= value <= MAX_EXACT_FLOAT_INT:
        raise Mismatch("the integer is beyond 2**53 and would lose digits as a float")
    return float(value)


def plain_iso(text):
    """Python 3.9 and 3.10 read neither `Z` nor other fractions than of 3 or 6 digits."""
    if sys.version_info >= (3, 11):
        return text
    if text.endswith(("Z", "z")):
        text = text[:-1] + "+00:00"
    head, dot, tail = text.partition(".")
    if not dot:
        return text
    digits = 0
    while digits < len(tail) and tail[digits].isdigit():
        digits += 1
    return "%s.%s%s" % (head, (tail[:digits] + "000000")[:6], tail[digits:])


# ---------------------------------------------------------------- values in files
# What JSON cannot carry well travels as a file, of which the JSON text holds the id alone. Files
# that come with a call lie read-only where its header says; those that go are handed over as open
# descriptors, and whoever takes them copies and proves what it reads.

_FORMATS = {"file": "", "ndarray": "npy", "pickle": "pickle"}  # the others are Arrow's file format
_SUFFIXES = {"npy": ".npy", "arrow": ".arrow", "pickle": ".pickle"}
_FILES_MAX = 64  # of one call; as many descriptors go with one message


class CarriedFiles:
    """The files of the call under way."""

    def __init__(self):
        self.begin({})

    def begin(self, header):
        self.given = header.get("files") or {}  # by id: where it lies, and its format
        self.ids = list(header.get("file_ids") or ())
        self.made = []  # (id, format, name, descriptor)
        self.opened = []
        self.mapped = []  # what maps a file: it is let go after the answer

    def place(self, plain, tag="file"):
        if type(plain) is not dict or type(plain.get("$file")) is not str:
            raise _expected('a file as {"$file": id}', plain)
        found = self.given.get(plain["$file"])
        if found is None:
            raise Mismatch("the file did not come with the call")
        if tag == "pickle" and found[1] != tag:
            raise Mismatch("the file is no pickle that a node of this run gave")
        return found[0]

    def open(self, place):
        stream = open(place, "rb")
        self.opened.append(stream)
        return stream

    def hand_over(self, descriptor, form, name):
        if not self.ids:
            os.close(descriptor)
            raise Mismatch("a call gives at most %d files" % _FILES_MAX, "output_too_large")
        file_id = self.ids.pop()
        self.made.append((file_id, form, name, descriptor))
        return {"$file": file_id}

    def end(self):
        for _, _, _, descriptor in self.made:
            os.close(descriptor)
        for stream in self.opened:
            try:
                stream.close()
            except BaseException:
                pass
        self.made, self.opened, self.mapped, self.given, self.ids = [], [], [], {}, []


FILES = CarriedFiles()


_SPARE_BYTES_MIN = 1 << 20
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
            if _SPARE_BYTES_MIN <= size <= _SPARE_BYTES_MAX:
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


def _read_file(place):
    from pathlib import Path

    return Path(place)


def _read_ndarray(place):
    import numpy

    try:
        # Private pages of the file itself: nothing is copied but what the node writes to.
        array = numpy.lib.format.open_memmap(place, mode="c").view(numpy.ndarray)
    except ValueError:  # nothing to map in an empty array; anything else is told by the reader
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

    return polars.read_ipc(place)  # mapped where nothing is compressed


def _read_pickle(place):
    import pickle

    with open(place, "rb") as stream:
        return pickle.load(stream)  # noqa: S301 - of its own run, in its own sandbox


def _write_ndarray(value, stream):
    import numpy

    if not isinstance(value, numpy.ndarray):
        raise _expected("numpy.ndarray", value)
    if value.dtype.hasobject:
        raise Mismatch("an array of Python objects is not carried", "serialization_error")
    numpy.lib.format.write_array(stream, value, allow_pickle=False)


def _ndarray_in_place(value):
    """The array in pages that are there already, as a descriptor; None where it has to be written."""
    import io

    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray:
        return None
    if value.dtype.hasobject or not value.flags.c_contiguous:
        return None
    if value.nbytes < _SPARE_BYTES_MIN:  # their pages are got in no time that counts
        return None
    form, header = numpy.lib.format, io.BytesIO()
    try:
        form.write_array_header_1_0(header, form.header_data_from_array_1_0(value))
    except ValueError:  # of a table with very many columns
        return None
    return SPARE.filled([header.getvalue(), value.reshape(-1).view("u1")])


def _write_arrow(value, stream):
    import pyarrow

    if not isinstance(value, pyarrow.Table):
        raise _expected("pyarrow.Table", value)
    with pyarrow.ipc.new_file(stream, value.schema) as writer:
        writer.write_table(value)


def _write_pandas(value, stream):
    import pandas
    import pyarrow

    if not isinstance(value, pandas.DataFrame):
        raise _expected("pandas.DataFrame", value)
    _write_arrow(pyarrow.Table.from_pandas(value), stream)


def _write_polars(value, stream):
    import polars

    if not isinstance(value, polars.DataFrame):
        raise _expected("polars.DataFrame", value)
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
    form = _FORMATS.get(tag, "arrow")

    def encode(value):
        descriptor = _ndarray_in_place(value) if tag == "ndarray" else None
        if descriptor is not None:
            return FILES.hand_over(descriptor, form, "value" + _SUFFIXES[form])
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
        return FILES.hand_over(descriptor, form, "value" + _SUFFIXES[form])

    return encode


def _encode_path(value):
    if type(value) is dict and type(value.get("$file")) is str:
        return {"$file": _check_text(value["$file"])}
    name = ""
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        path = os.fsdecode(path) if isinstance(path, bytes) else path
        for file_id, (place, _) in FILES.given.items():
            if path == place:
                return {"$file": file_id}  # as it came
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
        raise _expected("a path or a binary stream", value)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Mismatch("only a regular file can leave a node", "serialization_error")
    return FILES.hand_over(descriptor, "", clean(name, 200))


def wants_stream(annotation):
    """Whether a parameter asks for an open file instead of its path."""
    text = annotation if isinstance(annotation, str) else ""
    if not text:
        text = "%s.%s" % (
            getattr(annotation, "__module__", ""),
            getattr(annotation, "__qualname__", getattr(annotation, "_name", "")),
        )
        if getattr(annotation, "__origin__", None) is not None:
            text = str(annotation)
    return text.rpartition(".")[2].startswith(("BinaryIO", "IO[bytes]", "BufferedReader"))


# ---------------------------------------------------------------- conversions
# All work on plain JSON: the text of the source type is the start, that of the target the end.


def _want(plain, kinds, name):
    if type(plain) not in kinds:
        raise _expected(name, plain)
    return plain


def _to_bool(plain):
    found = {"true": True, "1": True, "false": False, "0": False}.get(plain.strip().lower())
    if found is None:
        raise Mismatch("the text is neither true nor false")
    return found


def _parsed(make, plain, name):
    try:
        return make(plain)
    except (ValueError, ArithmeticError):
        raise Mismatch("the text is not %s" % name) from None


def _float_to_int(plain):
    if type(plain) is int:
        return plain
    if not plain.is_integer():
        raise Mismatch("the number has a fraction and cannot be an int")
    return int(plain)


def _unique(plain):
    """The items that a set would keep: to it, 1, 1.0 and True are the same."""
    seen = {}
    for item in plain:
        key = as_hashable(item)
        try:
            seen.setdefault(key, item)
        except TypeError:  # an object is somewhere in it
            seen.setdefault(_dump(item), item)
    return list(seen.values())


def _decimal_text(text):
    from decimal import Decimal

    return str(Decimal(text.strip()))


def _uuid_text(text):
    from uuid import UUID

    return str(UUID(text.strip()))


def _datetime_text(text):
    from datetime import datetime

    return datetime.fromisoformat(plain_iso(text.strip())).isoformat()


def _date_text(text):
    from datetime import date

    return date.fromisoformat(text.strip()).isoformat()


CONVERSIONS = {
    "int_to_float": lambda v: exact_float(_want(v, (int, float), "int")),
    "bool_to_int": lambda v: int(_want(v, (bool,), "bool")),
    "int_to_str": lambda v: str(_want(v, (int,), "int")),
    "float_to_str": lambda v: repr(exact_float(_want(v, (int, float), "float"))),
    "bool_to_str": lambda v: "true" if _want(v, (bool,), "bool") else "false",
    "int_to_decimal": lambda v: str(_want(v, (int,), "int")),
    "float_to_decimal": lambda v: repr(exact_float(_want(v, (int, float), "float"))),
    "decimal_to_str": _same,
    "uuid_to_str": _same,
    "datetime_to_str": _same,
    "date_to_str": _same,
    "date_to_datetime": lambda v: _want(v, (str,), "date") + "T00:00:00",
    "bytes_to_base64": _same,
    "tuple_to_list": _same,
    "set_to_list": _same,
    "frozenset_to_list": _same,
    "list_to_tuple": _same,
    "enum_to_value": _same,
    "record_to_dict": _same,
    "value_to_json": lambda v: _dump(v),
    "str_to_int": lambda v: _parsed(int, _want(v, (str,), "str"), "an integer"),
    "str_to_float": lambda v: _check_float(_parsed(float, _want(v, (str,), "str"), "a number")),
    "str_to_bool": lambda v: _to_bool(_want(v, (str,), "str")),
    "str_to_decimal": lambda v: _parsed(_decimal_text, _want(v, (str,), "str"), "a decimal"),
    "str_to_datetime": lambda v: _parsed(_datetime_text, _want(v, (str,), "str"), "a datetime"),
    "str_to_date": lambda v: _parsed(_date_text, _want(v, (str,), "str"), "a date"),
    "str_to_uuid": lambda v: _parsed(_uuid_text, _want(v, (str,), "str"), "a UUID"),
    "float_to_int": lambda v: _float_to_int(_want(v, (int, float), "float")),
    "list_to_set": lambda v: _unique(_want(v, (list,), "list")),
    "json_to_value": lambda v: _parsed(parse_text, _want(v, (str,), "str"), "JSON"),
}


def _converted(method, plain):
    """What an edge's conversion makes of a value; its fault tells the value's shape alone."""
    try:
        return CONVERSIONS[method](plain)
    except Mismatch as problem:
        text = "%s %s: %s" % (method, _shape_told(plain), problem.args[0])
    except KeyError:
        text = "%s is no conversion that this runner knows" % method
    except (ValueError, RecursionError):
        text = "%s %s: the value cannot be converted" % (method, _shape_told(plain))
    raise Mismatch(text, "conversion_error")


def _shape_told(plain):
    if type(plain) is str:
        return "of a text of %d characters" % len(plain)
    if type(plain) in (list, dict):
        return "of a %s of %d" % (type(plain).__name__, len(plain))
    return "of a value of %s" % describe(plain)


# ---------------------------------------------------------------- errors


def safe_text(problem, limit=MAX_MESSAGE):
    """str() of an exception, which may fail, run for long in text, or hold what cannot be stored."""
    try:
        text = str(problem)
    except BaseException:
        text = "<no text: __str__ failed>"
    return clean(text, limit)


def clean(text, limit):
    cut = len(text) > limit
    text = text[:limit].replace("\x00", "\\x00")
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text + "... [truncated]" if cut else text


def _frames(problem, source):
    """The frames from the user's first one on: the agent's own are of no interest."""
    frames = []
    link = problem.__traceback__
    while link is not None and len(frames) < 100000:
        frames.append(link)
        link = link.tb_next
    first = 0
    for position, link in enumerate(frames):
        if link.tb_frame.f_code.co_filename == FILENAME:
            first = position
            break
    else:
        if frames and frames[0].tb_frame.f_code.co_filename == __file__:
            first = 1
    frames = frames[first:]
    if len(frames) > MAX_FRAMES:
        half = MAX_FRAMES // 2
        shown = [*frames[:half], None, *frames[-half:]]
    else:
        shown = frames
    out = []
    for link in shown:
        if link is None:
            out.append("  ... %d frames left out" % (len(frames) - MAX_FRAMES))
            continue
        code = link.tb_frame.f_code
        out.append('  File "%s", line %d, in %s' % (code.co_filename, link.tb_lineno, code.co_name))
        if code.co_filename == FILENAME and 0 < link.tb_lineno <= len(source):
            out.append("    " + source[link.tb_lineno - 1].strip()[:200])
    return out


_CAUSE = "The above exception was the direct cause of the following one:"
_CONTEXT = "While handling the above exception, another one occurred:"


def _members(problem):
    """The exceptions in a group and in groups within it, a bounded number of them."""
    found, waiting, seen = [], [problem], 0
    while waiting and len(found) < MAX_CAUSES and seen < 1000:
        seen += 1
        current = waiting.pop(0)
        inner = getattr(current, "exceptions", None)
        if _is_group(current) and isinstance(inner, tuple):
            waiting[:0] = [each for each in inner if isinstance(each, BaseException)]
        elif current is not problem:
            found.append(current)
    return found


def _is_group(problem):
    return sys.version_info >= (3, 11) and isinstance(problem, BaseExceptionGroup)  # noqa: F821


def _lines_of(problem, source):
    name, text = type(problem).__name__[:255], safe_text(problem)
    lines = ["Traceback (most recent call last):", *_frames(problem, source)]
    lines.append("%s: %s" % (name, text) if text else name)
    return name, text, "\n".join(lines)


def _cause_of(problem):
    if problem.__cause__ is not None:
        return problem.__cause__, _CAUSE
    if problem.__context__ is not None and not problem.__suppress_context__:
        return problem.__context__, _CONTEXT
    return None, ""


def error_of(problem, source, kind="user_error"):
    """An exception as data: bounded whatever it holds."""
    chain = []
    seen = set()
    current, link = problem, ""
    while current is not None and len(chain) < MAX_CAUSES and id(current) not in seen:
        seen.add(id(current))
        name, text, lines = _lines_of(current, source)
        following = link
        current, link = _cause_of(current)
        chain.append((name, text, lines, following))
    trace = []
    for _, _, text, following in reversed(chain):
        trace.append(text)
        if following:
            trace.append("\n%s\n" % following)
    name, text = chain[0][0], chain[0][1]
    causes = [
        {"kind": "cause" if link is _CAUSE else "context", "exception": n, "message": t[:1000]}
        for n, t, _, link in chain[1:]
    ]
    for number, member in enumerate(_members(problem)):
        n, t, lines = _lines_of(member, source)
        trace.append("\nMember %d of the group:\n\n%s" % (number + 1, lines))
        causes.append({"kind": "member", "exception": n, "message": t[:1000]})
    return {
        "type": kind,
        "message": "%s: %s" % (name, text) if text else name,
        "exception": name,
        "traceback": clean("\n".join(trace), MAX_TRACE),
        "causes": causes,
    }


def no_passing():
    """A kernel of a sandbox's own may let no open file out to the runner."""
    return plain_error(
        "serialization_error",
        "files cannot leave this sandbox: its kernel passes no open file on; return the value as"
        " JSON, or run the node in another tier",
    )


def too_large(size, size_max):
    if size <= size_max:
        return None
    text = "the outputs are %d bytes; the limit is %d" % (size, size_max)
    return plain_error("output_too_large", text)


def plain_error(kind, message):
    return {"type": kind, "message": message, "exception": "", "traceback": "", "causes": []}


# ---------------------------------------------------------------- the channel


class Channel:
    """Frames on one blocking descriptor that no other part of the process is told of."""

    def __init__(self, descriptor):
        self.begin_anew(descriptor)

    current = None  # where several calls are under way: gives the one that is asked from, or None

    def begin_anew(self, descriptor):
        """Speak on another descriptor, in a process that may be another: a fork's."""
        self.descriptor = descriptor
        self.pending = bytearray()
        self.missing = 0  # what the next frame is known to lack
        # Threads of user code tell what they print while the answer is written.
        self.lock = _thread.allocate_lock()
        self.writer = 0  # the thread within a frame, which must not be left half written
        self.stopped = False
        self.pid = os.getpid()
        self.room = 0  # how much more of this call's output may be told

    def on_stop(self, number, frame):
        """SIGTERM: at once, but for a frame that is being written."""
        if self.writer == _thread.get_ident():
            self.stopped = True
            return
        raise Terminated()

    def read(self):
        """The next (header, body), or None at the end."""
        while True:
            frame = self.whole()
            if frame is not None:
                return frame
            if not self._more(self.missing):
                return None

    def whole(self):
        """The next (header, body) where it has come whole, else None."""
        self.missing = 0
        if len(self.pending) < 8:
            return None
        header_length, body_length = _HEAD.unpack_from(self.pending)
        total = 8 + header_length + body_length
        if len(self.pending) < total:
            self.missing = total - len(self.pending)
            return None
        header = _parse(self.pending[8 : 8 + header_length].decode("utf-8"))
        body = bytes(self.pending[8 + header_length : total])
        del self.pending[:total]
        return header, body

    def waiting(self):
        """Whether something has come that was not read yet."""
        import select

        return bool(self.pending or select.select([self.descriptor], [], [], 0)[0])

    def _more(self, wanted=0):
        chunk = os.read(self.descriptor, max(65536, min(wanted, 1 << 20)))
        self.pending += chunk
        return bool(chunk)

    def write(self, header):
        self.write_text(_dump(header))

    def write_text(self, header, parts=(), descriptors=()):
        head = header.encode("utf-8")
        body = b"".join(parts)
        self._send(_HEAD.pack(len(head), len(body)) + head + body, descriptors)

    def tell(self, header, body):
        """Tell of output; False when there is no room, or this is a child of the agent's process."""
        holder = self
        if self.current is not None:
            holder = self.current()
            if holder is None:
                return False  # of no call, or of a thread that does not know of which
            header = holder.named(header)
        if holder.room <= 0 or os.getpid() != self.pid:
            return False
        holder.room -= len(body) + LOG_FRAME_COST
        self._send(_HEAD.pack(len(header), len(body)) + header + body)
        return True

    def beat(self, body, header=_BEAT):
        """Tell that the call goes on; nothing from a child of the agent's process."""
        if os.getpid() == self.pid:
            self._send(_HEAD.pack(len(header), len(body)) + header + body)

    def _send(self, data, descriptors=()):
        with self.lock:
            self.writer = _thread.get_ident()
            try:
                if descriptors:
                    data = data[self._send_with(data, descriptors) :]
                self._write_all(data)
            finally:
                self.writer = 0
        if self.stopped:
            self.stopped = False
            raise Terminated()

    def _send_with(self, data, descriptors):
        import array
        import socket

        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        with socket.socket(fileno=os.dup(self.descriptor)) as channel:
            return channel.sendmsg([data], [rights])

    def _write_all(self, data):
        written = os.write(self.descriptor, data)
        while written < len(data):
            data = memoryview(data)[written:]
            written = os.write(self.descriptor, data)


# ---------------------------------------------------------------- what user code writes


class Printed(io.RawIOBase):
    """What Python code prints, told on the channel so that streams and records keep one order.

    Past the call's room, and in processes that user code forks, it goes to the descriptor.
    """

    def __init__(self, channel, descriptor):
        super().__init__()
        self.channel = channel
        self.descriptor = descriptor
        self.header = b'{"op":"log","s":%d}' % descriptor
        self.name = "<stdout>" if descriptor == 1 else "<stderr>"

    def writable(self):
        return True

    def fileno(self):
        return self.descriptor

    def write(self, data):
        piece = bytes(data[:LOG_FRAME_BYTES])
        if not self.channel.tell(self.header, piece):
            return os.write(self.descriptor, data)
        return len(piece)


def open_printed(channel, descriptor):
    # By lines: what a node prints is seen while it runs.
    raw = io.BufferedWriter(Printed(channel, descriptor))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class ImportWatch:
    """Does something with a module when user code imports it, at no cost where none does."""

    def __init__(self, awaited):
        self.awaited = awaited  # by name, what takes the module

    def find_spec(self, name, path=None, target=None):
        take = self.awaited.pop(name, None)
        if take is None:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            take(module)

        spec.loader.exec_module = exec_module
        return spec


class Shown:
    """The node whose lines are shown."""

    node = None

    def show(self, linecache):
        if self.node is not None:
            self.node.show(linecache)


SHOWN = Shown()


def take_records(logging, channel):
    """Send the root logger's records on the channel, and let `basicConfig` shape them."""

    class Records(logging.Handler):
        def emit(self, record):
            try:
                text = self.format(record)
                header = _dump(
                    {"op": "log", "level": int(record.levelno), "name": str(record.name)[:255]}
                )
                body = text.encode("utf-8", "backslashreplace")[:LOG_FRAME_BYTES]
                if not channel.tell(header.encode("utf-8", "backslashreplace"), body):
                    sys.stderr.write(text + "\n")
            except Exception:
                self.handleError(record)

    handler = Records()
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    configure = logging.basicConfig

    def basic_config(**options):
        """With a handler of ours there it would do nothing: its level and format are taken over."""
        root.removeHandler(handler)
        configure(**options)
        for made in list(root.handlers):
            if type(made) is logging.StreamHandler and made.stream in (sys.stdout, sys.stderr):
                root.removeHandler(made)
                handler.setFormatter(made.formatter)
        root.addHandler(handler)

    logging.basicConfig = basic_config


# ---------------------------------------------------------------- what user code says of itself


class Beats:
    """What the functions of `qflow.attempt` do: say that the attempt goes on, and how far it is.

    No more than ten go out in a second; what was said last is told before a failure is.
    """

    current = None  # where several calls are under way: gives the one that is asked from, or None

    def __init__(self):
        self.channel = None  # while a call is under way
        self.given = ""
        self.unsent = None
        self.next_s = 0.0

    def begin(self, channel, given):
        self.channel = channel
        self.given = given
        self.unsent = None
        self.next_s = 0.0

    def end(self, failed):
        if failed and self.unsent:
            self.channel.beat(self.unsent)
        self.channel = None

    def heartbeat(self, progress=None):
        """Say that the attempt goes on, and how far it has come: plain JSON of at most 8 KiB."""
        own = self._own()
        if own is not self:
            return own.heartbeat(progress)
        body = self.unsent or b""
        if progress is not None:
            try:
                body = _dump(encode_any(progress)).encode("utf-8")
            except Mismatch as problem:
                raise ValueError(problem.text("progress")) from None
            if len(body) > PROGRESS_BYTES_MAX:
                raise ValueError(
                    "progress is %d bytes; at most %d are kept" % (len(body), PROGRESS_BYTES_MAX)
                )
        channel, now_s = self.channel, time.monotonic()
        if channel is None or now_s < self.next_s:
            self.unsent = body
            return None
        self.next_s, self.unsent = now_s + BEAT_SPACING_S, None
        return channel.beat(body)

    def progress(self, default=None):
        """Give what the latest earlier attempt that said so had come to; else the default."""
        given = self._own().given
        return _parse(given) if given else default

    def _own(self):
        call = None if self.current is None else self.current()
        return self if call is None else call.beats


BEATS = Beats()


class OwnModules:
    """Gives `qflow.attempt` to code that imports it, at no cost where none does."""

    def find_spec(self, name, path=None, target=None):
        if name not in ("qflow", "qflow.attempt"):
            return None
        from _frozen_importlib import ModuleSpec

        if name == "qflow.attempt":
            return ModuleSpec(name, self)
        for finder in sys.meta_path:  # a distribution of that name keeps its other modules
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ == "qflow.attempt":
            module.heartbeat, module.progress = BEATS.heartbeat, BEATS.progress


# ---------------------------------------------------------------- what a call may leave behind


class Residue:
    """Tells what user code left: a warm interpreter that is not as it was gets replaced.

    Asked after every call, so it asks the C modules: `signal` makes enums, `os.environ` decodes.
    """

    def __init__(self):
        self.last_pid_file = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        self.last_pid = self._last_pid()
        self.started = False  # whether the last call started a process or a thread
        self.threads = len(os.listdir("/proc/self/task"))
        self.cwd = os.getcwd()
        self.environment = dict(os.environ._data)
        self.handlers = [_signal.getsignal(number) for number in _WATCHED_SIGNALS]
        self.blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self.streams = (sys.stdin, sys.stdout, sys.stderr)

    def _last_pid(self):
        # The last process or thread number given out in this PID namespace: unchanged means that
        # nothing was started, at the price of one read instead of a walk through /proc.
        return os.pread(self.last_pid_file, 128, 0).rsplit(b" ", 1)[-1]

    def found(self, worked_ns=None):
        """What is not as it was, after calls that took so long; None where that is not known."""
        last_pid = self._last_pid()
        self.started = last_pid != self.last_pid
        if self.started:
            worked_ns = None  # others worked beside
            self.last_pid = last_pid
            if len(os.listdir("/proc/self/task")) > self.threads:
                return "threads"
            if self._others():
                return "children"
        return self.changed() or ("temporary files" if ROOMS.crowded(worked_ns) else "")

    def changed(self):
        """What is not as it was, of what no call under way changes for itself alone."""
        if os.environ._data != self.environment:
            return "environment"
        if [_signal.getsignal(number) for number in _WATCHED_SIGNALS] != self.handlers:
            return "signal handlers"
        if _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) != self.blocked:
            return "signal mask"
        if _signal.getitimer(_signal.ITIMER_REAL)[0]:
            return "timer"
        try:
            if os.getcwd() != self.cwd:
                return "working directory"
        except OSError:
            return "working directory"
        if (sys.stdin, sys.stdout, sys.stderr) != self.streams:
            return "streams"
        return ""

    def _others(self):
        try:
            os.waitpid(-1, os.WNOHANG)
            return True
        except ChildProcessError:
            pass
        own = os.getpid()
        try:
            names = os.listdir("/proc")
        except OSError:  # no namespace of its own: others' processes are none of its business
            return False
        return any(name.isdigit() and int(name) not in (1, own) for name in names)


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


# ---------------------------------------------------------------- loading and calling


def positional_defaults(function):
    """The defaults of positional-only parameters: those after an unfed one cannot go by name."""
    while isinstance(getattr(function, "__wrapped__", None), FunctionType):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is None:
        return {}
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    with_default = dict(zip(names[len(names) - len(defaults) :], defaults))
    only = names[: code.co_posonlyargcount]
    return {name: with_default[name] for name in only if name in with_default}


def _of_input(name, problem):
    """The same fault, told of the parameter that the value was for."""
    told = Mismatch(problem.text("input %r" % name), problem.kind)
    told.input = name
    return told


class Node:
    """One loaded node version."""

    def __init__(self, spec):
        code = spec["code"]
        self.source = code.splitlines()
        self.loop = None
        self.main = None
        self.spec = spec
        if spec.get("env"):
            sys.path.append(spec["env"])
        self.module = ModuleType(MODULE)
        self.module.__file__ = FILENAME
        sys.modules[MODULE] = self.module
        SHOWN.node = self
        if "linecache" in sys.modules:
            SHOWN.show(sys.modules["linecache"])

    def show(self, linecache):
        """Let tracebacks and `inspect` find the lines of the code, which is in no file."""
        lines = [line + "\n" for line in self.source]
        linecache.cache[FILENAME] = (len(self.spec["code"]), None, lines, FILENAME)

    def run_module(self, program=None):
        if program is None:
            program = compile(self.spec["code"], FILENAME, "exec", dont_inherit=True)
        exec(program, self.module.__dict__)  # noqa: S102 - this is what a sandbox is for
        self.main = self.module.__dict__.get(self.spec["main"])
        if not callable(self.main):
            raise Mismatch("the code defines no function %r" % self.spec["main"], "user_error")

    def compile_codecs(self):
        codecs = Codecs(self.module.__dict__)
        self.inputs = [
            (
                entry["name"],
                self._decoder_of(codecs, entry["name"], entry["type"]),
                entry.get("kind") == "keyword",
            )
            for entry in self.spec["inputs"]
        ]
        self.outputs = [
            (entry["name"], _dump(entry["name"]), codecs.encoder(entry["type"]))
            for entry in self.spec["outputs"]
        ]
        self.fillers = positional_defaults(self.main)

    def _decoder_of(self, codecs, name, kind):
        annotations = getattr(self.main, "__annotations__", None)
        if kind.get("t") == "file" and isinstance(annotations, dict):
            if wants_stream(annotations.get(name)):
                return lambda plain: FILES.open(FILES.place(plain))
        return codecs.decoder(kind)

    def decode(self, header, body):
        """The call's arguments: (positional, keyword)."""
        given = {}
        offset = 0
        for name, length, conversion in header["inputs"]:
            given[name] = (body[offset : offset + length], conversion)
            offset += length
        positional, keyword = [], {}
        in_order = True
        for name, decode, by_name in self.inputs:
            if name not in given:
                if in_order and name in self.fillers:
                    positional.append(self.fillers[name])
                else:
                    in_order = False  # its default applies; those after it go by name
                continue
            try:
                raw, conversion = given.pop(name)
                plain = _parse(raw.decode("utf-8"))
                for method in conversion or ():
                    plain = _converted(method, plain)
                value = decode(plain)
            except Mismatch as problem:
                raise _of_input(name, problem) from None
            except (ValueError, RecursionError):
                raise _of_input(name, Mismatch("not strict JSON")) from None
            if by_name or not in_order:
                keyword[name] = value
            else:
                positional.append(value)
        if given:
            raise Mismatch("unknown input %r" % sorted(given)[0])
        return positional, keyword

    def run(self, positional, keyword):
        value = self.main(*positional, **keyword)
        if isinstance(value, CoroutineType):
            return self._run_async(value)
        return value

    def _run_async(self, coroutine):
        import asyncio

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        return self.loop.run_until_complete(coroutine)

    def leftover_tasks(self):
        if self.loop is None:
            return False
        import asyncio

        if asyncio.all_tasks(self.loop):
            return True
        executor = getattr(self.loop, "_default_executor", None)
        return executor is not None

    def encode(self, value):
        """The outputs: (name as JSON text, value as JSON text)."""
        if len(self.outputs) == 1 and self.outputs[0][0] == "result":
            name, name_text, encode = self.outputs[0]
            return [(name_text, self._encode_one(name, encode, value))]
        texts = []
        if isinstance(value, dict):
            names = [name for name, _, _ in self.outputs]
            for name in value:
                if name not in names:
                    raise Mismatch(
                        "the returned %s has an unknown field %s"
                        % (describe(value), str(name)[:100])
                    )
        for name, name_text, encode in self.outputs:
            if isinstance(value, dict):
                found = value.get(name, _ABSENT)
            else:
                found = getattr(value, name, _ABSENT)
            if found is _ABSENT:
                raise Mismatch(
                    "output %r is missing from the returned %s" % (name, describe(value))
                )
            texts.append((name_text, self._encode_one(name, encode, found)))
        return texts

    def _encode_one(self, name, encode, value):
        try:
            plain = encode(value)
            return (str(plain) if type(plain) is int else _dump(plain)).encode("utf-8")
        except Mismatch as problem:
            raise Mismatch(problem.text("output %r" % name), problem.kind) from None
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise Mismatch(
                "output %r cannot be written as JSON" % name, "serialization_error"
            ) from None


class Meter:
    """What one call used, by the kernel's count: this process, and children it waited for."""

    def __init__(self, clear_refs):
        self.clear_refs = clear_refs  # open since before rights were given up
        self.begin()

    def begin(self):
        """Start again from what is counted now."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.peak_kb = own.ru_maxrss
        self.children_us = _cpu_us(children)
        self.children_peak_kb = children.ru_maxrss
        self.children_blocks = (children.ru_inblock, children.ru_oublock)
        self.blocks = self._blocks(own)

    def _blocks(self, own):
        read, write = self.children_blocks
        return own.ru_inblock + read, own.ru_oublock + write

    def end(self, began_ns, spawned):
        """The fields of the reply; a call that started no process and read nothing asks once.

        `began_ns` is what the process had used when the call began: the kernel's two ways to tell
        give the same sum.
        """
        own = resource.getrusage(resource.RUSAGE_SELF)
        cpu_us = max(0, _cpu_us(own) - began_ns // 1000)
        peak_kb = own.ru_maxrss
        more = ""
        if spawned:
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            children_us = _cpu_us(children)
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
        """The next call's peak is its own, where the kernel can be asked to count it anew."""
        self.peak_kb = peak_kb
        try:
            os.write(self.clear_refs, b"5")
            self.peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        except OSError:
            pass


def _cpu_us(used):
    return int((used.ru_utime + used.ru_stime) * 1e6)


class Agent:
    """Reads frames until the channel ends."""

    def __init__(self, channel, meter):
        self.channel = channel
        self.meter = meter
        self.node = None
        self.residue = None
        self.context = {}
        self.broken = False
        self.prepared = {}
        self.programs = {}  # of versions that are forked: their code, compiled
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
        """Hand over the socket that the way out is served on, where there is one."""
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
        """Learn a node version that is loaded anew, in a process of its own, for each call."""
        began = time.perf_counter_ns()
        if not self.prepared:
            keep_apart()
        self.prepared[header["version"]] = header
        if header["apart"] == "fork":
            import_ahead(header)
            self.programs[header["version"]] = compiled_ahead(header["code"])
            rehearse(header)
            flush_streams()  # what is left in a buffer would be printed by every fork
            gc.freeze()
            # With more than one thread there is no fork: what another holds stays held for ever.
            if len(os.listdir("/proc/self/task")) > 1:
                header["apart"] = "fresh"
        ROOMS.settle()
        wall_us = (time.perf_counter_ns() - began) // 1000
        self.channel.write({"op": "loaded", "wall_us": wall_us, "apart": header["apart"]})

    def call_apart(self, header, body):
        """Call in a child, which loads the code itself; the child has no way to the runner."""
        version = header["version"]
        apart = Apart(self.prepared[version], header, body, self.programs.get(version))
        reply, parts, descriptors = apart.result(self.channel)
        if apart.killed:
            # By the kernel, for want of memory: the runner learns that from the sandbox's end.
            os._exit(128 + _signal.SIGKILL)
        reply["recycle"] = "children" if left_running() else ""
        if not reply["recycle"] and not ROOMS.empty():
            reply["recycle"] = "temporary files"
        try:
            self.channel.write_text(_dump(reply), [parts], descriptors)
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
        # As `os.environ` sets them, without what it asks of each: half of them differ in each call.
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
                if made[1]:  # those that take memory; a file is bounded where it is written
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
        self.channel.room = 0  # what comes after the call is nobody's
        recycle = self.left_behind(began)
        cpu_us, peak_kb, more = self.meter.end(cpu, self.residue.started)
        user_us = max(0, left - entered) // 1000
        # Written by hand: it is most of what a short call costs beside the call itself.
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
                whole += ',"files":%s' % _dump([made[:3] for made in FILES.made])
            descriptors = [made[3] for made in FILES.made]
            try:
                self.channel.write_text(whole + "}", [text for _, text in texts], descriptors)
            except OSError:
                if not descriptors:
                    raise
                error = no_passing()
        if error is not None:
            self.channel.write_text('%s"error":%s}' % (reply, _dump(error)))
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


# ---------------------------------------------------------------- several calls at once


class Call:
    """One call of several: what is its own while they share a process."""

    def __init__(self, header, channel):
        self.number = header["id"]
        self.channel = channel
        self.context = header.get("context") or {}
        self.room = header.get("log_room", 0)
        self.output_bytes_max = header["output_bytes_max"]
        self.beats = Beats()
        self.streams = {}
        self.used = [0, 0, 0]  # processors' microseconds, blocks read, blocks written
        self.begun = self.told = False
        self.task = None

    def named(self, header):
        """The header of what this call tells."""
        return header[:-1] + b',"c":%d}' % self.number

    def beat(self, body):
        self.channel.beat(body, self.named(_BEAT))

    def stream(self, descriptor):
        found = self.streams.get(descriptor)
        if found is None:
            found = self.streams[descriptor] = open_printed(self.channel, descriptor)
        return found

    def cancel(self):
        self.told = True
        if self.begun:  # else it would end before it could answer
            self.task.cancel()


class Routed(io.TextIOBase):
    """A standard stream: what is printed goes to that of the call which prints it.

    What no call is known for goes to the descriptor.
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
    """Let `os.environ` show each call its own variables; it stays the object that it was."""

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
    """Divides what the process uses among the calls that are under way meanwhile, in equal parts."""

    def __init__(self):
        self.before = self._counted()

    def _counted(self):
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (
            _cpu_us(own) + _cpu_us(children),
            own.ru_inblock + children.ru_inblock,
            own.ru_oublock + children.ru_oublock,
        )

    def divide(self, calls):
        """Note what was used since the last time, by these."""
        now = self._counted()
        for call in calls:
            for at, (before, after) in enumerate(zip(self.before, now)):
                call.used[at] += (after - before) / len(calls)
        self.before = now


class Together:
    """Calls one `async def` several times at once, on one event loop.

    What is a call's own goes with its context: tasks that it begins have it, and threads that
    asyncio begins for it.
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
        call.room = 0  # what comes after the call is nobody's
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
        head = '%s,"outputs":[%s]}' % (_dump(reply)[:-1], sizes)
        return self.channel.write_text(head, [text for _, text in texts])

    def _left_behind(self):
        """What the calls left, once none is under way; else what none of them may change."""
        try:
            if self.calls:
                return self.agent.residue.changed()
            own = self.asyncio.current_task(self.loop)
            if any(task is not own for task in self.asyncio.all_tasks(self.loop)):
                return "asyncio tasks"
            return self.agent.residue.found()
        except BaseException:
            return "unknown state"


# ---------------------------------------------------------------- calls in processes of their own


def keep_apart():
    """Children may not look into this process, and none of them is lost to another parent."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_DUMPABLE, 0), (_PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "prctl")


_ONLY_AST = 0x400  # `ast.PyCF_ONLY_AST`: `ast` itself would be imported for this alone


def import_ahead(spec):
    """Import what the code imports at its top, once for all forks; its own lines are not run.

    What cannot be imported is left to the child, which says why.
    """
    import _ast

    told = _dump([spec["inputs"], spec["outputs"]])
    needed = [name for name in ("datetime", "decimal", "uuid") if '"%s' % name in told]
    if '"bytes' in told:
        needed.append("base64")
    if "async def" in spec["code"]:
        needed.append("asyncio")
    for name in needed:
        __import__(name)
    if spec.get("env") and spec["env"] not in sys.path:
        sys.path.append(spec["env"])
    try:
        lines = compile(spec["code"], FILENAME, "exec", _ONLY_AST, dont_inherit=True).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for line in lines:
        names = []
        if isinstance(line, _ast.Import):
            names = [each.name for each in line.names]
        elif isinstance(line, _ast.ImportFrom) and not line.level and line.module:
            names = [line.module]
        for name in names:
            try:
                __import__(name)
            except BaseException:
                continue


def compiled_ahead(code):
    """The compiled code, or None: what cannot be compiled is said by the child that tries."""
    try:
        return compile(code, FILENAME, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_NOTHING_NODE = {
    "code": "def main(x):\n    return x\n",
    "main": "main",
    "inputs": [{"name": "x", "type": {"t": "int"}}],
    "outputs": [{"name": "result", "type": {"t": "int"}}],
}
_REHEARSALS = 16  # more than it takes Python to note how code is run


def rehearse(spec):
    """Make calls of a node that does nothing, and the codecs of one to come.

    Python writes into code and classes how they are used. What it has written before a fork stands
    in pages that forks share; each would write it anew, into copies of its own.
    """
    try:
        nowhere = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    agent = Agent(Channel(nowhere), Meter(-1))
    agent.residue = Nothing()
    call = {"id": 0, "inputs": [["x", 1, []]], "output_bytes_max": 1024}
    for _ in range(_REHEARSALS):
        agent.node = Node(_NOTHING_NODE)
        agent.node.run_module()
        agent.node.compile_codecs()
        agent.call({**call, "context": {"QFLOW_NODE_ID": "n"}}, b"1")
        agent.set_context({})
        codecs = Codecs({})
        for compiled, entries in ((codecs.decoder, "inputs"), (codecs.encoder, "outputs")):
            for entry in spec[entries]:
                try:
                    compiled(entry["type"])
                except Exception:  # classes are the code's own
                    continue
    os.close(nowhere)
    del sys.modules[MODULE]
    SHOWN.node = None


def left_running():
    """Whether a process is left of a call's: each comes to this one when its parent ends."""
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if child == 0:
            return True


class Apart:
    """One call in a child: forked from here, or begun from nothing where that is asked for."""

    def __init__(self, spec, header, body, program=None):
        self.spec = spec
        self.header = header
        self.body = body
        self.program = program
        self.child = 0
        self.killed = False

    def result(self, channel):
        """The reply's header, its body, and the open files; output is told on as it comes."""
        import _socket

        began = time.perf_counter_ns()
        pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        reading, writing = pair[0].detach(), pair[1].detach()
        channel.room = self.header.get("log_room", 0)
        self.child = self._fork(channel, reading, writing)
        os.close(writing)
        previous = _signal.signal(_signal.SIGTERM, self._pass_on)
        try:
            reply = self._answer(Answers(reading), channel)
        finally:
            os.close(reading)
            channel.room = 0
            _signal.signal(_signal.SIGTERM, previous)
        try:
            # It may have answered and not ended: threads that user code left go with it.
            os.kill(self.child, _signal.SIGKILL) if reply is not None else None
        except ProcessLookupError:
            pass
        _, status, used = os.wait4(self.child, 0)
        if reply is not None:
            return reply
        self.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == _signal.SIGKILL
        if os.WIFSIGNALED(status):
            import signal

            how = "signal %s" % signal.Signals(os.WTERMSIG(status)).name
        else:
            how = "exit status %d" % os.WEXITSTATUS(status)
        usage = {
            "cpu_us": int((used.ru_utime + used.ru_stime) * 1000000),
            "max_rss_kb": used.ru_maxrss,
            "wall_us": (time.perf_counter_ns() - began) // 1000,
            "serialization_us": 0,
        }
        message = "the process ended before it returned (%s)" % how
        return (
            {
                "op": "result",
                "id": self.header["id"],
                "usage": usage,
                "error": plain_error("exited", message),
            },
            b"",
            [],
        )

    def _answer(self, frames, channel):
        """Wait for the reply; pass on output, and that the call goes on as seldom as it should."""
        next_s, unsent = 0.0, None
        while True:
            reply = read_frame(frames, self.header["output_bytes_max"])
            op = reply[0].get("op") if reply is not None else None
            if op == "log":
                if not relay(channel, reply[0], reply[1]):
                    return frames.refuse()
                continue
            if op != "beat":
                if reply is not None and unsent is not None:
                    channel.beat(unsent)
                return reply
            now_s, unsent = time.monotonic(), reply[1][:PROGRESS_BYTES_MAX]
            if now_s >= next_s:
                channel.beat(unsent)
                next_s, unsent = now_s + BEAT_SPACING_S, None

    def _pass_on(self, number, frame):
        try:
            os.kill(self.child, _signal.SIGTERM)
        except ProcessLookupError:
            pass

    def _fork(self, channel, reading, writing):
        child = os.fork()
        if child:
            return child
        try:
            os.close(channel.descriptor)
            os.close(reading)
            _signal.signal(_signal.SIGTERM, on_terminate)
            if self.spec["apart"] == "fork":
                # The very channel that streams and `logging` write to; now it ends at the agent.
                serve_once(channel, writing, self.spec, self.header, self.body, self.program)
            else:
                self._begin_anew(writing)
        except BaseException:
            pass
        os._exit(1)

    def _begin_anew(self, writing):
        """Become a new interpreter, which reads this call from a file without a name."""
        agent = os.memfd_create("agent", 0)
        with os.fdopen(os.dup(agent), "wb") as file:
            file.write(AGENT)
        place = os.memfd_create("call", 0)
        for header, body in ((self.spec, b""), (self.header, self.body)):
            head = _dump(header).encode("utf-8")
            with os.fdopen(os.dup(place), "wb") as file:
                file.write(_HEAD.pack(len(head), len(body)) + head + body)
        os.lseek(place, 0, os.SEEK_SET)
        os.set_inheritable(agent, True)
        os.set_inheritable(place, True)
        os.set_inheritable(writing, True)
        place_of_agent = "/proc/self/fd/%d" % agent  # by name its user may not even enter there
        program = [sys.executable, "-I", "-S", place_of_agent, str(place), str(writing)]
        os.execv(sys.executable, program)


def read_frame(frames, body_bytes_max):
    """What a child says next; None where that is no frame. It is no more trusted than its code."""
    try:
        while len(frames.pending) < 8:
            if not frames._more():
                return frames.refuse()
        header_length, body_length = _HEAD.unpack_from(frames.pending)
        if header_length > 256 * 1024 or body_length > body_bytes_max + 4096:
            return frames.refuse()
        header, body = frames.read()
    except (OSError, TypeError, ValueError, Mismatch, RecursionError):
        return frames.refuse()
    return (header, body, frames.descriptors) if type(header) is dict else frames.refuse()


def relay(channel, header, body):
    """Tell the runner what a child told of its output; False where that is nothing of the kind.

    What is past the call's room is not told: a child that keeps to it writes to its descriptors.
    """
    if len(body) > LOG_FRAME_BYTES:
        return False
    if header.get("s") in (1, 2):
        told = {"op": "log", "s": header["s"]}
    else:
        try:
            told = {"op": "log", "level": int(header["level"]), "name": str(header["name"])[:255]}
        except (KeyError, TypeError, ValueError, OverflowError):
            return False
    channel.tell(_dump(told).encode("utf-8", "backslashreplace"), body)
    return True


class Answers(Channel):
    """What comes from a child, with open files beside it."""

    def __init__(self, descriptor):
        import _socket

        super().__init__(descriptor)
        self.socket = _socket.socket(fileno=os.dup(descriptor))
        self.room_for = _socket.CMSG_SPACE(4 * _FILES_MAX)
        self.descriptors = []

    def waiting(self):
        """Whether something has come that was not read yet."""
        import select

        return bool(self.pending or select.select([self.descriptor], [], [], 0)[0])

    def _more(self, wanted=0):
        chunk, given, _, _ = self.socket.recvmsg(max(65536, min(wanted, 1 << 20)), self.room_for)
        for _, _, data in given:
            self.descriptors += [each for (each,) in struct.iter_unpack("=i", data)]
        self.pending += chunk
        return bool(chunk)

    def refuse(self):
        for descriptor in self.descriptors:
            os.close(descriptor)


def serve_once(channel, writing, spec, header, body, program=None):
    """In the child: load, call, answer, end."""
    # Away from the low numbers, as the agent's own channel is.
    channel.begin_anew(fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, 200))
    os.close(writing)
    _signal.signal(_signal.SIGTERM, channel.on_stop)
    channel.room = header.get("log_room", 0)
    agent = Agent(channel, Meter(-1))  # its peak of memory is this call's alone
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
    """Forks of one process would draw equal numbers; `random` sees to that itself, numpy does not."""
    module = sys.modules.get("numpy.random")
    if module is not None:
        try:
            module.seed()
        except BaseException:
            pass


class Nothing:
    """What a process that ends after its call leaves behind is its parent's to look for."""

    environment = {}
    started = True  # nobody looks: what children used is asked for

    def found(self, worked_ns=None):
        return ""


def flush_streams():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


def apply_limits(header):
    """Lower this process's own rights before any user code is read."""
    for name, value in header.get("rlimits", {}).items():
        number = getattr(resource, "RLIMIT_" + name)
        resource.setrlimit(number, (value, value))
    uid = header.get("uid")
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.umask(0o077)
    if header.get("confine"):
        confine(header["confine"])
    if header.get("filter"):
        import ctypes

        install_filter(ctypes.CDLL(None, use_errno=True), header["filter"])


_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # on every architecture
_LANDLOCK_READ = 0b1101  # execute, read a file, read a folder
_LANDLOCK_OF_FILES = 0b1100000000000111  # what a rule may give to what is no folder
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG = 22, 38, 1
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36


def confine(spec):
    """Where no namespace can be had: Landlock for files, no capabilities, and the filter.

    Fails when the kernel cannot do it; what starts this agent takes that for no sandbox.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def check(result, what):
        if result < 0:
            raise OSError(ctypes.get_errno(), what)
        return result

    check(libc.prctl(_PR_SET_PDEATHSIG, int(_signal.SIGKILL), 0, 0, 0), "prctl")
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    abi = check(libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "landlock")
    bits = 13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16
    network, scopes = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    attributes = struct.pack("=QQQ", (1 << bits) - 1, network, scopes)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = check(libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "landlock")
    places = [(path, _LANDLOCK_READ) for path in [*spec["read"], "/proc/%d" % os.getpid()]]
    places += [(path, (1 << bits) - 1) for path in spec["write"]]
    for path, rights in places:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            rights &= _LANDLOCK_OF_FILES & ((1 << bits) - 1)
        rule = struct.pack("=Qi", rights, place)
        check(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), "landlock")
        os.close(place)
    check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)
    # Version 3 of the capability structures; all sets empty.
    check(libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6)), "capset")
    install_filter(libc, spec["filter"])


def install_filter(libc, text):
    """Bar system calls for good, on top of what bars them already."""
    import base64
    import ctypes

    program = base64.b64decode(text)
    filters = ctypes.create_string_buffer(program, len(program))
    shape = struct.pack("@HP", len(program) // 8, ctypes.addressof(filters))
    if libc.prctl(_PR_SET_SECCOMP, 2, shape, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def on_terminate(number, frame):
    raise Terminated()


def enter(place):
    """The channel, through a gate where no descriptor can be inherited; and the two outputs."""
    import _socket

    gate = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    gate.connect(place)
    _, given, _, _ = gate.recvmsg(1, _socket.CMSG_LEN(12))
    gate.close()
    channel, stdout, stderr = struct.unpack("=3i", given[0][2])
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    return channel


def watch_output(channel):
    """From here on what Python code writes is told on the channel."""
    sys.stdout = sys.__stdout__ = open_printed(channel, 1)
    sys.stderr = sys.__stderr__ = open_printed(channel, 2)
    awaited = {"logging": lambda module: take_records(module, channel), "linecache": SHOWN.show}
    sys.meta_path.insert(0, ImportWatch(awaited))


def main():
    global AGENT
    sys.meta_path.insert(0, OwnModules())
    if len(sys.argv) == 3:  # one call, which lies in a file
        _signal.signal(_signal.SIGTERM, on_terminate)
        frames = Channel(int(sys.argv[1]))
        spec, (header, body) = frames.read()[0], frames.read()
        os.close(frames.descriptor)
        writing = int(sys.argv[2])
        del sys.argv[1:]
        sys.argv[0] = FILENAME
        channel = Channel(writing)
        watch_output(channel)
        serve_once(channel, writing, spec, header, body)
    with open(sys.argv[0], "rb") as file:
        AGENT = file.read()
    given = int(sys.argv[1]) if sys.argv[1].isdigit() else enter(sys.argv[1])
    # Away from the low numbers, where careless code closes everything, and closed on exec.
    descriptor = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(given)
    del sys.argv[1:]
    sys.argv[0] = FILENAME
    channel = Channel(descriptor)
    # Opened with the rights that this process still has; where it is barred, peaks only grow.
    try:
        clear_refs = fcntl.fcntl(
            os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, 200
        )
    except OSError:
        clear_refs = -1

    _signal.signal(_signal.SIGTERM, channel.on_stop)
    watch_output(channel)
    try:
        Agent(channel, Meter(clear_refs)).serve()
    except Terminated:
        pass
    # Threads that user code left must not keep the sandbox alive.
    flush_streams()
    os._exit(0)


if __name__ == "__main__":
    main()
