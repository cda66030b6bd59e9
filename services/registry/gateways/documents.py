"""Parse, write, diff and draw workflows: small ones in a thread, large ones in a bounded child.

The child process is `python -m services.registry.gateways.documents`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any, Final, Literal

from services.kit.errors import FailedPrecondition, ResourceExhausted
from services.registry.domain.chart import chart_of
from services.registry.domain.definition import Definition
from services.registry.domain.document import (
    DocumentError,
    Fault,
    read_json,
    to_json_lines,
)
from services.registry.domain.exchange import Bundle, Source, written
from services.registry.domain.exchange_reading import Read, read
from services.registry.domain.mermaid import mermaid
from services.registry.domain.stored import definition_from_json, definition_to_json, with_texts
from services.registry.domain.svg import LINKS_MAX, NODES_MAX, svg
from services.registry.domain.text_diff import TextDiff, compare
from services.registry.domain.yaml_text import read_yaml, to_yaml
from services.registry.gateways import bounded

Format = Literal["yaml", "json"]
Picture = Literal["mermaid", "svg"]
Json = dict[str, Any]

_THREAD_CHARS_MAX: Final = 64 * 1024
_THREAD_PARTS_MAX: Final = 500
_DIFF_CHARS_MAX: Final = 32 * 1024
_DRAWN_PARTS_MAX: Final = 200


class Documents:
    """Converts workflows to documents and back, draws them, and compares texts."""

    def __init__(self) -> None:
        self._child = bounded.Bounded(__name__)

    async def read(self, text: str, form: Format) -> Read:
        """Parse a document; raises DocumentError with all faults."""
        if len(text) <= _THREAD_CHARS_MAX:
            return await asyncio.to_thread(_read, text, form)
        answer = await self._child.ask({"read": text, "form": form})
        if answer is None:
            raise ResourceExhausted(
                "TEXT_TOO_COMPLEX", "the text takes too long to read; make it smaller"
            )
        if "faults" in answer:
            raise DocumentError(Fault(*each) for each in answer["faults"])
        places = {place: Fault(*where) for place, where in answer["places"].items()}
        return Read(_bundle_from_json(answer["bundle"]), places)

    async def write(self, bundle: Bundle, form: Format) -> str:
        """Return the document of a bundle."""
        definition = bundle.definition
        chars = sum(len(each.code or "") for each in bundle.sources.values())
        if (
            len(definition.nodes) + len(definition.connections) <= _THREAD_PARTS_MAX
            and chars <= _THREAD_CHARS_MAX
        ):
            return await asyncio.to_thread(_write, bundle, form)
        answer = await self._child.ask({"write": _bundle_to_json(bundle), "form": form})
        if answer is None:
            raise FailedPrecondition(
                "EXPORT_TOO_LARGE", "the workflow is too large to be written as one text"
            )
        return str(answer["text"])

    async def compare(self, before: str, after: str, names: tuple[str, str]) -> TextDiff:
        """Compare two texts; if that takes too long, the result is cut to its header."""
        if before == after:
            return TextDiff("", cut=False)
        if len(before) + len(after) <= _DIFF_CHARS_MAX:
            return await asyncio.to_thread(compare, before, after, names)
        answer = await self._child.ask({"compare": [before, after], "names": names})
        if answer is None:
            return TextDiff(f"--- {names[0]}\n+++ {names[1]}\n", cut=True)
        return TextDiff(answer["text"], cut=answer["cut"])

    async def draw(
        self, title: str, definition: Definition, names: Sequence[str], form: Picture
    ) -> str:
        """Draw a definition; `names` has the name of each place's node."""
        parts = len(definition.nodes) + len(definition.connections)
        if form == "svg" and (
            len(definition.nodes) > NODES_MAX or len(definition.connections) > LINKS_MAX
        ):
            raise FailedPrecondition(
                "PICTURE_TOO_LARGE",
                f"an SVG image shows at most {NODES_MAX} nodes and {LINKS_MAX} connections;"
                " ask for Mermaid",
            )
        if parts <= _DRAWN_PARTS_MAX:
            return await asyncio.to_thread(_draw, title, definition, names, form)
        answer = await self._child.ask(
            {
                "draw": definition_to_json(definition),
                "title": title,
                "names": list(names),
                "form": form,
            }
        )
        if answer is None:
            raise FailedPrecondition(
                "PICTURE_TOO_LARGE", "the workflow is too large to be drawn as one picture"
            )
        return str(answer["text"])


def _draw(title: str, definition: Definition, names: Sequence[str], form: Picture) -> str:
    chart = chart_of(title, definition, names)
    return svg(chart) if form == "svg" else mermaid(chart)


def _read(text: str, form: Format) -> Read:
    return read(read_json(text) if form == "json" else read_yaml(text))


def _write(bundle: Bundle, form: Format) -> str:
    document = written(bundle)
    return to_json_lines(document) if form == "json" else to_yaml(document)


def _bundle_to_json(bundle: Bundle) -> Json:
    return {
        "name": bundle.name,
        "description": bundle.description,
        "definition": definition_to_json(bundle.definition),
        "type_texts": [each.type_text for each in bundle.definition.inputs],
        "parameter_texts": [each.type_text for each in bundle.definition.parameters],
        "sources": [[key, asdict(source)] for key, source in bundle.sources.items()],
    }


def _bundle_from_json(given: Mapping[str, Any]) -> Bundle:
    return Bundle(
        name=given["name"],
        description=given["description"],
        definition=with_texts(
            definition_from_json(given["definition"]), given["type_texts"], given["parameter_texts"]
        ),
        sources={key: Source(**source) for key, source in given["sources"]},
    )


def _answer(request: Mapping[str, Any]) -> Json:
    match request:
        case {"read": text, "form": form}:
            try:
                done = _read(text, form)
            except DocumentError as error:
                return {"faults": [astuple(each) for each in error.faults]}
            places = {place: astuple(where) for place, where in done.places.items()}
            return {"bundle": _bundle_to_json(done.bundle), "places": places}
        case {"write": given, "form": form}:
            return {"text": _write(_bundle_from_json(given), form)}
        case {"compare": [before, after], "names": names}:
            return asdict(compare(before, after, names))
        case {"draw": given, "title": title, "names": names, "form": form}:
            return {"text": _draw(title, definition_from_json(given), names, form)}
        case _:
            raise ValueError(list(request))


if __name__ == "__main__":
    bounded.respond(_answer(bounded.request()))
