"""Logging: past-tense events with fields, as JSON lines unless written to a terminal."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import BinaryIO, Final

import orjson
import structlog

_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


FLUSH_S: Final = 0.05
_LINE: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z

# Fields of every line within a call: one variable, since each costs a copy per call.
CALL_FIELDS: Final[ContextVar[Mapping[str, str]]] = ContextVar("qflow_call_fields")


class _Lines:
    """The output of JSON lines, once `configure` has set it."""

    out: BinaryIO | None = None
    service = ""
    threshold = 0
    flushing = False  # whether a flush is scheduled


def write_line(level: str, event: str, fields: Mapping[str, object]) -> None:
    """Log the line of a call: as a logger would, without its processors, which cost too much.

    It is flushed within `FLUSH_S`, or with the next line of a logger; a killed process may lose it.
    """
    out = _Lines.out
    if out is None:
        structlog.get_logger().log(_LEVELS[level], event, **fields)
        return
    if _LEVELS[level] < _Lines.threshold:
        return
    line = {
        "service": _Lines.service,
        **fields,
        "event": event,
        "level": level,
        "timestamp": datetime.now(UTC),
    }
    out.write(orjson.dumps(line, default=str, option=_LINE))
    if not _Lines.flushing:
        _Lines.flushing = True
        asyncio.get_running_loop().call_later(FLUSH_S, _flush, out)


def _flush(out: BinaryIO) -> None:
    _Lines.flushing = False
    out.flush()


def configure(service: str, *, level: str = "info") -> None:
    """Set up structlog and the standard library's loggers for this process; call it once, first."""
    threshold = _LEVELS.get(level.lower(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _merge_call_fields,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks: others contain local variables, and so perhaps secrets.
    if sys.stdout.isatty():
        tail: list[structlog.typing.Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]
        factory: structlog.typing.Processor | object = structlog.WriteLoggerFactory(sys.stdout)
    else:
        tail = [structlog.processors.format_exc_info, _to_json]
        _Lines.out = out = _buffered(sys.stdout.buffer)
        factory = structlog.BytesLoggerFactory(out)
    _Lines.service, _Lines.threshold = service, threshold
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=factory,  # type: ignore[arg-type]  # the two factories share no base
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    _adopt_standard_loggers(threshold)


def _buffered(out: BinaryIO) -> BinaryIO:
    """Buffer even with PYTHONUNBUFFERED: lines are flushed in time."""
    raw = isinstance(out, io.RawIOBase)
    return open(out.fileno(), "wb", closefd=False) if raw else out


def _merge_call_fields(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {**CALL_FIELDS.get({}), **event}


def _to_json(_logger: object, _name: str, event: structlog.typing.EventDict) -> bytes:
    return orjson.dumps(event, default=str)


class _ToStructlog(logging.Handler):
    """Sends log records of libraries (asyncio, grpc, alembic) through structlog.

    Warnings have the error without its traceback, which does not help where the library goes on:
    asyncpg warns every second while its server is away.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        goes_on = record.levelno < logging.ERROR and error is not None
        structlog.get_logger().log(
            record.levelno,
            "library_logged",
            logger=record.name,
            text=record.getMessage(),
            **({"error": repr(error)} if goes_on else {"exc_info": record.exc_info or None}),
        )


def _adopt_standard_loggers(threshold: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(max(threshold, logging.WARNING))
