"""Outputs as stored in rows: JSON objects, each value exactly as it was produced."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from services.orchestrator.domain.plan import RunOutput
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.values import (
    FileValue,
    ListOutput,
    NodeOutput,
    UnreadableError,
    text_of,
)

# Longer lists of elements' outputs are stored in the rows of the elements only.
INLINE_CHARS_MAX: Final = 64 * 1024

# Cached, since the names of outputs recur.
_quoted: Final = lru_cache(maxsize=4096)(json.dumps)


def object_text(run: Run, slot: int, output: NodeOutput) -> str:
    """Return a slot's outputs as one JSON object, each value exactly as it was produced."""
    names = run.place(slot).outputs
    if len(names) == 1 and isinstance(output, tuple):  # the usual case
        return f"{{{_quoted(names[0])}:{output[0].decode()}}}"
    parts = [f"{_quoted(name)}:{text_of(output, at).decode()}" for at, name in enumerate(names)]
    return "{" + ",".join(parts) + "}"


def run_output(run: Run) -> str:
    """Return the run's outputs as one JSON object; a value in a file becomes a reference."""
    return _outputs_text(run, run.plan.outputs)


def partial_output(run: Run) -> str:
    """Return those of the run's outputs whose nodes have completed, as `run_output` does."""
    return _outputs_text(run, [each for each in run.plan.outputs if each.source in run.outputs])


def _outputs_text(run: Run, outputs: Iterable[RunOutput]) -> str:
    parts = []
    for output in outputs:
        value = run.outputs.get(output.source)
        if isinstance(value, FileValue):
            field = run.plan.places[output.source].outputs[output.output]
            text = json.dumps(
                {"$file": str(value.file_id), "field": field, "size_bytes": value.size_bytes}
            )
        else:
            text = text_of(value, output.output).decode()
        parts.append(f"{_quoted(output.name)}:{text}")
    return "{" + ",".join(parts) + "}"


def inline_text(run: Run, slot: int, output: NodeOutput) -> str | None:
    """Return the output text for a row; None if it is in a file or in the elements' rows."""
    if isinstance(output, FileValue):
        return None
    if isinstance(output, ListOutput):
        try:
            text = object_text(run, slot, output)
        except UnreadableError:
            return None
        return text if len(text) <= INLINE_CHARS_MAX else None
    return object_text(run, slot, output)
