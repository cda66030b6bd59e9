"""Declared types: their names, and how members of a union are told apart."""

# Types whose values travel as files; see `carried`.
CARRIED = ("file", "ndarray", "arrow", "pandas", "polars", "pickle")
TEXT_KINDS = ("bytes", "decimal", "uuid", "datetime", "date", "time")
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
    """Sort members of a union in the order of decoding; `qflow.types.order` explains it."""
    return sorted(options, key=lambda option: _RANK.get(option.get("t"), 9))


def keys_by_precision(kind):
    """Sort a key's members: every key is a text, so `str` is tried first if it is one of them."""
    return sorted(by_precision(kind["any_of"]), key=lambda option: option.get("t") != "str")


def as_it_is(plain):
    return plain


def as_hashable(plain):
    """Make a value of an undeclared type hashable: an array can only have been a tuple."""
    return tuple(map(as_hashable, plain)) if type(plain) is list else plain


def type_name(kind):
    """Return a short name of a declared type, for messages."""
    tag = kind.get("t")
    if tag == "union":
        return " | ".join(type_name(option) for option in kind["any_of"])
    if tag in ("record", "enum", "named"):
        return str(kind.get("name"))
    return {"none": "None"}.get(tag, str(tag))
