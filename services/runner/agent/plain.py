"""Plain JSON: parsed strictly, written exactly, and limited to what every reader accepts."""

import _json
import math

from .problems import Mismatch, at_index, at_key, describe

MAX_DEPTH = 64
MAX_INT_BITS = 14285  # 10**4300 has 14,285 bits: no shorter integer can have more than 4,300 digits
MAX_INT_DIGITS = 4300
MAX_EXACT_FLOAT_INT = 2**53


def _refuse_constant(name):
    raise Mismatch("%s is not JSON" % name, "serialization_error")


_BLANK = " \t\n\r"


class Scanned:
    """The options that the scanner in C reads: strict JSON, as in `json.JSONDecoder`."""

    strict = True
    object_hook = array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)

    def __init__(self, object_pairs_hook=None):
        self.object_pairs_hook = object_pairs_hook
        self.scan = _json.make_scanner(self)

    def decode(self, text):
        """Return the value of a text; raises ValueError."""
        start = len(text) - len(text.lstrip(_BLANK))
        try:
            value, end = self.scan(text, start)
        except (
            StopIteration,
            SystemError,
        ):  # SystemError if `json` is not loaded: it has no JSONDecodeError then
            raise ValueError("not JSON") from None
        if text[end:].strip(_BLANK):
            raise ValueError("not JSON: something follows it")
        return value


parse = Scanned().decode


def _refuse_twice(pairs):
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Mismatch("a key occurs twice in an object", "serialization_error")
    return made


_parse_pairs = Scanned(_refuse_twice).decode


def _refuse_other(value):
    raise TypeError("%s is not JSON" % describe(value))


_encode_chunks = _json.make_encoder(
    None, _refuse_other, _json.encode_basestring, None, ":", ",", False, False, False
)


def dump(value):
    """Return JSON text without blanks, from plain values without NaN and Infinity."""
    return "".join(_encode_chunks(value, 0))


def check_int(value):
    if -MAX_EXACT_FLOAT_INT < value < MAX_EXACT_FLOAT_INT:
        return value
    if value.bit_length() >= MAX_INT_BITS and abs(value) >= 10**MAX_INT_DIGITS:
        raise Mismatch("the integer has more than 4300 digits", "serialization_error")
    return value


def check_float(value):
    if not math.isfinite(value):
        raise Mismatch("NaN and Infinity are not JSON", "serialization_error")
    return value


def check_text(value):
    if "\x00" in value:
        raise Mismatch("the text contains a NUL character", "serialization_error")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Mismatch("the text contains a lone surrogate", "serialization_error") from None
    return value


def unwrap_numpy(value):
    """Return the plain value of a numpy scalar, which numeric code often returns."""
    kind = type(value)
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def plain_key(key):
    if type(key) is not str:
        raise Mismatch(
            "a key is %s; without a declared type keys are str" % describe(key),
            "serialization_error",
        )
    return check_text(key)


def parse_text(text):
    """Parse JSON text that becomes a value, with all the checks of a value."""
    return encode_any(_parse_pairs(text))


def encode_any(value, depth=0):
    """Return a value as plain JSON, which a reader in any language gets back unchanged."""
    if depth > MAX_DEPTH:
        raise Mismatch("nested deeper than 64, or contains itself", "serialization_error")
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        return check_text(value)
    if kind is int:
        return check_int(value)
    if kind is float:
        return check_float(value)
    if kind is list or kind is tuple:
        out = []
        for position, item in enumerate(value):
            try:
                out.append(encode_any(item, depth + 1))
            except Mismatch as problem:
                raise problem.under(at_index(position))
        return out
    if kind is dict:
        out = {}
        for key, item in value.items():
            text = plain_key(key)
            try:
                out[text] = encode_any(item, depth + 1)
            except Mismatch as problem:
                raise problem.under(at_key(text))
        return out
    plain = unwrap_numpy(value)
    if plain is not value:
        return encode_any(plain, depth)
    if isinstance(value, str):
        return check_text(str.__str__(value))
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return check_int(int(value))
    if isinstance(value, float):
        return check_float(float(value))
    if isinstance(value, dict):
        return encode_any(dict(value), depth)
    raise Mismatch(
        "%s cannot be carried as JSON; declare its type or return plain values" % describe(value),
        "serialization_error",
    )


def exact_float(value):
    if type(value) is float:
        return check_float(value)
    if not -MAX_EXACT_FLOAT_INT <= value <= MAX_EXACT_FLOAT_INT:
        raise Mismatch("the integer is beyond 2**53 and would lose digits as a float")
    return float(value)
