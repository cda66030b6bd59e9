"""What rows hold of outputs: JSON objects, each value exactly as it was produced."""

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

# Of lists that elements gave: longer ones stand in the elements' rows alone.
INLINE_CHARS_MAX: Final = 64 * 1024

# The names of outputs: the same few, again and again.
_quoted: Final = lru_cache(maxsize=4096)(json.dumps)


def object_text(run: Run, slot: int, output: NodeOutput) -> str:
    """Write a slot's outputs as one JSON object, each value exactly as it was produced."""
    names = run.place(slot).outputs
    if len(names) == 1 and isinstance(output, tuple):  # as with most
        return f"{{{_quoted(names[0])}:{output[0].decode()}}}"
    parts = [f"{_quoted(name)}:{text_of(output, at).decode()}" for at, name in enumerate(names)]
    return "{" + ",".join(parts) + "}"


def run_output(run: Run) -> str:
    """Write the run's outputs as one JSON object; a value in a file stands as its reference."""
    return _outputs_text(run, run.plan.outputs)


def partial_output(run: Run) -> str:
    """Write those of the run's outputs whose nodes were completed, as `run_output` does."""
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
    """Give what a row holds of an output; None where a file or elements' rows hold it."""
    if isinstance(output, FileValue):
        return None
    if isinstance(output, ListOutput):
        try:
            text = object_text(run, slot, output)
        except UnreadableError:
            return None
        return text if len(text) <= INLINE_CHARS_MAX else None
    return object_text(run, slot, output)
