"""Errors of calls: a value that does not match its type, a call that must end."""


class Mismatch(Exception):
    """A value that does not match its declared type; `kind` is the error type to report."""

    def __init__(self, message, kind="type_error"):
        super().__init__(message)
        self.kind = kind
        self.path = ""
        self.input = ""  # the parameter that the value was for

    def under(self, step):
        self.path = "%s%s" % (step, self.path)
        return self

    def text(self, root):
        return "%s%s: %s" % (root, self.path, self.args[0])


class Terminated(BaseException):
    """SIGTERM: the attempt is cancelled or out of time. Not an Exception, so code lets it pass."""


def describe(value):
    """Return the type of a value: never its content or repr, which may run code."""
    return type(value).__name__


def expected(name, value):
    return Mismatch("expected %s, got %s" % (name, describe(value)))


def at_index(position):
    return "[%d]" % position


def at_key(name):
    return ".%s" % name[:100]


def on_terminate(number, frame):
    raise Terminated()
