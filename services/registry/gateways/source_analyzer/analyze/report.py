"""Diagnostics of a source, with lines and columns counted from 1."""

from __future__ import annotations

DIAGNOSTICS_MAX = 100
ERROR, WARNING, INFO = "error", "warning", "info"


class Refused(Exception):
    """The source is rejected; holds the diagnostic."""

    def __init__(self, code, message, hint, node=None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.node = node


class Report:
    """Collects diagnostics, with lines and columns counted from 1."""

    def __init__(self, code):
        self.lines = code.splitlines()
        self.found = []

    def add(self, severity, code, message, hint, node=None, line=0, column=0):
        """Add a diagnostic at a syntax node, or at a line and column."""
        if node is not None:
            line = getattr(node, "lineno", 0)
            column = self.column(line, getattr(node, "col_offset", -1))
        entry = {
            "severity": severity,
            "code": code,
            "message": message[:1000],
            "hint": hint[:1000],
            "line": max(0, line or 0),
            "column": max(0, column or 0),
        }
        if len(self.found) < DIAGNOSTICS_MAX and entry not in self.found:
            self.found.append(entry)

    def column(self, line, offset):
        """Return the column of a parser's offset, counted from 1."""
        # The parser counts UTF-8 bytes, people count characters.
        if offset < 0 or not 0 < line <= len(self.lines):
            return 0
        head = self.lines[line - 1].encode("utf-8", "replace")[:offset]
        return len(head.decode("utf-8", "replace")) + 1


def not_a_type(node, what="this annotation"):
    """Return the error for an annotation that is not a type."""
    return Refused(
        "TYPE_NOT_UNDERSTOOD",
        "%s is not a type" % what,
        "write a type such as list[int], or Any",
        node,
    )


def needs_brackets(name, node):
    """Return the error for a name that is not a type without brackets."""
    short = name.rpartition(".")[2]
    return Refused(
        "TYPE_NOT_UNDERSTOOD",
        "%s needs a type in brackets" % name,
        "write it so: %s[int]" % short,
        node,
    )


def name_too_long(node):
    """Return the error for a type's name that is too long to store."""
    return Refused(
        "TYPE_NOT_UNDERSTOOD",
        "this name is too long for a type",
        "use a name of at most 255 characters",
        node,
    )
