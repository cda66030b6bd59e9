"""Logging: past-tense events with fields, JSON lines unless somebody watches a terminal."""

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

# What every line within a call carries: one variable for all, since each costs a copy per call.
CALL_FIELDS: Final[ContextVar[Mapping[str, str]]] = ContextVar("qflow_call_fields")


class _Lines:
    """Where JSON lines go, once `configure` has decided that they do."""

    out: BinaryIO | None = None
    service = ""
    threshold = 0
    flushing = False  # whether what is written will be flushed


def write_line(level: str, event: str, fields: Mapping[str, object]) -> None:
    """Log a line that comes with every call: as a logger would, without its stages.

    They cost more than everything else that such a line stands for. It is on its way within
    `FLUSH_S`, or together with the next line of a logger; what is killed may take it along.
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
    # Plain tracebacks: the others carry local variables, and with them secrets.
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
    """Collect lines where Python was told not to (PYTHONUNBUFFERED): they are flushed in time."""
    raw = isinstance(out, io.RawIOBase)
    return open(out.fileno(), "wb", closefd=False) if raw else out


def _merge_call_fields(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {**CALL_FIELDS.get({}), **event}


def _to_json(_logger: object, _name: str, event: structlog.typing.EventDict) -> bytes:
    return orjson.dumps(event, default=str)


class _ToStructlog(logging.Handler):
    """Carries records of libraries (asyncio, grpc, alembic) into the same stream of lines.

    Where one of them warns and goes on, as asyncpg does each second while its server is away, the
    error is enough: what called what within the library helps nobody.
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
