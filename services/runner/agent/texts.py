"""Texts that represent values: dates, times and decimals."""

import sys

# The same texts that `qflow.types` accepts: a node accepts what another one returns.
_DATE = r"\d{4}-\d\d-\d\d"
_OFFSET = r"Z|[+-]\d\d:\d\d(:\d\d(\.\d{6})?)?"
_TIME = r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?(%s)?" % _OFFSET


class Pattern:
    """A regular expression that is compiled when it is first used."""

    def __init__(self, text):
        self.text = text

    def fullmatch(self, value):
        import re

        self.fullmatch = re.compile(self.text, re.ASCII).fullmatch
        return self.fullmatch(value)


DATE_TEXT = Pattern(_DATE)
TIME_TEXT = Pattern(_TIME)
DATETIME_TEXT = Pattern("%s[T ]%s" % (_DATE, _TIME))
_DECIMAL_TEXT = Pattern(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,6})?")
_DECIMAL_CHARS_MAX = 4301  # 4,300 digits and a sign


def is_decimal(text):
    return len(text) <= _DECIMAL_CHARS_MAX and bool(_DECIMAL_TEXT.fullmatch(text))


def plain_iso(text):
    """Normalise for Python 3.9 and 3.10, which accept no `Z`, and only 3 or 6 fraction digits."""
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
