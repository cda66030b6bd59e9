"""Conversions of edges: all work on plain JSON.

A name begins with the source type, and ends with the target type.
"""

from .kinds import as_hashable, as_it_is
from .plain import check_float, dump, exact_float, parse_text
from .problems import Mismatch, describe, expected
from .texts import plain_iso


def _want(plain, kinds, name):
    if type(plain) not in kinds:
        raise expected(name, plain)
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
    """Return the items that a set would keep: 1, 1.0 and True are equal."""
    seen = {}
    for item in plain:
        key = as_hashable(item)
        try:
            seen.setdefault(key, item)
        except TypeError:  # it contains an object
            seen.setdefault(dump(item), item)
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
    "decimal_to_str": as_it_is,
    "uuid_to_str": as_it_is,
    "datetime_to_str": as_it_is,
    "date_to_str": as_it_is,
    "date_to_datetime": lambda v: _want(v, (str,), "date") + "T00:00:00",
    "bytes_to_base64": as_it_is,
    "tuple_to_list": as_it_is,
    "set_to_list": as_it_is,
    "frozenset_to_list": as_it_is,
    "list_to_tuple": as_it_is,
    "enum_to_value": as_it_is,
    "record_to_dict": as_it_is,
    "value_to_json": lambda v: dump(v),
    "str_to_int": lambda v: _parsed(int, _want(v, (str,), "str"), "an integer"),
    "str_to_float": lambda v: check_float(_parsed(float, _want(v, (str,), "str"), "a number")),
    "str_to_bool": lambda v: _to_bool(_want(v, (str,), "str")),
    "str_to_decimal": lambda v: _parsed(_decimal_text, _want(v, (str,), "str"), "a decimal"),
    "str_to_datetime": lambda v: _parsed(_datetime_text, _want(v, (str,), "str"), "a datetime"),
    "str_to_date": lambda v: _parsed(_date_text, _want(v, (str,), "str"), "a date"),
    "str_to_uuid": lambda v: _parsed(_uuid_text, _want(v, (str,), "str"), "a UUID"),
    "float_to_int": lambda v: _float_to_int(_want(v, (int, float), "float")),
    "list_to_set": lambda v: _unique(_want(v, (list,), "list")),
    "json_to_value": lambda v: _parsed(parse_text, _want(v, (str,), "str"), "JSON"),
}


def converted(method, plain):
    """Convert a value for an edge; errors only reveal the shape of the value."""
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
