"""Exceptions as data, limited in size whatever they contain."""

import sys

from .user_code import FILENAME

MAX_MESSAGE = 4096
MAX_TRACE = 32768
MAX_CAUSES = 8
MAX_FRAMES = 24


def safe_text(problem, limit=MAX_MESSAGE):
    """Return str() of an exception, which may fail, be very long, or hold unstorable characters."""
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
    """Return the frames from the user's first one on, without the agent's own."""
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
        while first < len(frames) and _is_own(frames[first]):
            first += 1
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


def _is_own(link):
    return link.tb_frame.f_code.co_filename.startswith(_OWN)


_OWN = _is_own.__code__.co_filename[: -len("errors.py")]
_CAUSE = "The above exception was the direct cause of the following one:"
_CONTEXT = "While handling the above exception, another one occurred:"


def _members(problem):
    """Return the exceptions in a group and nested groups, up to a limit."""
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
    """Return an exception as data, limited in size."""
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
    """Return the error where the kernel of a sandbox cannot pass open files out to the runner."""
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
