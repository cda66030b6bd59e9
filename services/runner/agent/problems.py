"""What user code is told of: a value that is not of its type, a call that is to end."""


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


def describe(value):
    """The kind of a value in a word: never its content, never its repr, which may run code."""
    return type(value).__name__


def expected(name, value):
    return Mismatch("expected %s, got %s" % (name, describe(value)))


def at_index(position):
    return "[%d]" % position


def at_key(name):
    return ".%s" % name[:100]


def on_terminate(number, frame):
    raise Terminated()
