"""Validation of wheels: metadata must match the file name, and refer to nothing outside."""

from __future__ import annotations

from dataclasses import dataclass
from email.parser import HeaderParser
from typing import Final

from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import parse_tag
from packaging.utils import (
    InvalidWheelFilename,
    canonicalize_name,
    canonicalize_version,
    parse_wheel_filename,
)

_REQUIREMENTS_MAX: Final = 500
_TEXT_CHARS_MAX: Final = 500


class WheelError(ValueError):
    """The wheel is not accepted; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFacts:
    """The metadata of a wheel."""

    filename: str
    name: str
    version: str
    summary: str
    requires_python: str
    requirements: list[str]


def wheel_facts(filename: str, *, folder: str, metadata: str, wheel: str) -> WheelFacts:
    """Check a wheel's metadata against its file name; raises WheelError."""
    try:
        name, version, _, tags = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        raise WheelError(
            "the file name is not that of a wheel: name-version-python-abi-platform.whl"
        ) from None
    said, _ = parse_email(metadata)
    _same("Name", canonicalize_name(said.get("name", "")), name)
    _same(
        "Version",
        canonicalize_version(said.get("version", ""), strip_trailing_zero=False),
        canonicalize_version(str(version), strip_trailing_zero=False),
    )
    owner, _, rest = folder.removesuffix(".dist-info").rpartition("-")
    if canonicalize_name(owner) != name or canonicalize_version(rest) != canonicalize_version(
        str(version)
    ):
        raise WheelError(f"the folder {folder[:100]} is not of {name} {version}")
    headers = HeaderParser().parsestr(wheel)
    if not str(headers.get("Wheel-Version", "")).startswith("1."):
        raise WheelError("Wheel-Version must be 1")
    if tags != {each for text in headers.get_all("Tag", []) for each in parse_tag(str(text))}:
        raise WheelError("the tags of WHEEL are not those of the file name")
    return WheelFacts(
        filename=filename,
        name=name,
        version=str(version),
        summary=_line(said.get("summary", "")),
        requires_python=_python(said.get("requires_python", "")),
        requirements=_requirements(said.get("requires_dist", [])),
    )


def _same(what: str, said: str, promised: str) -> None:
    if said != promised:
        raise WheelError(f"{what} is {said[:100]!r} where the file name says {promised!r}")


def _python(text: str) -> str:
    try:
        return str(SpecifierSet(text))
    except InvalidSpecifier:
        raise WheelError("Requires-Python cannot be read") from None


def _requirements(texts: list[str]) -> list[str]:
    if len(texts) > _REQUIREMENTS_MAX:
        raise WheelError(f"it needs more than {_REQUIREMENTS_MAX} packages")
    for text in texts:
        try:
            parsed = Requirement(text)
        except InvalidRequirement:
            raise WheelError(f"its dependencies cannot be read: {text[:100]!r}") from None
        if parsed.url:
            raise WheelError(f"it depends on a URL: {text[:100]!r}")
    return [text[:_TEXT_CHARS_MAX] for text in texts]


def _line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)[:_TEXT_CHARS_MAX].strip()
