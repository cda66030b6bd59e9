"""The distributions a source needs: from its PEP 723 block, else guessed from its imports.

A requirement consists of a name, extras and version clauses only: no URL, path, option or marker
ever reaches an installer.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Parsed
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from services.registry.domain.import_names import DISTRIBUTIONS, NAMESPACES, widely_known
from services.registry.domain.source import Diagnostic, Import

REQUIREMENTS_MAX: Final = 100
_TEXT_CHARS_MAX: Final = 255
_NAME_CHARS_MAX: Final = 100
_SPECIFIERS_MAX: Final = 10
_EXTRAS_MAX: Final = 10
_BLOCK_BYTES_MAX: Final = 16 * 1024
_KEY_PARTS_MAX: Final = 32
_HINT: Final = 'write it so: dependencies = ["requests>=2,<3"]'
# A TOML key with more parts than allowed, bare or quoted: parsing takes quadratic time in them.
_LONG_KEY: Final = re.compile(
    r"""(?:(?:(?<![\w-])[\w-]++|(?<!\\)"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"""
    rf"""{{{_KEY_PARTS_MAX}}}"""
)
_BLOCK_START: Final = re.compile(r"# /// (?P<kind>[a-zA-Z0-9-]+)")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
# Provided by the runner's agent.
_PROVIDED: Final = frozenset({"qflow"})


@dataclass(frozen=True, slots=True)
class Requirement:
    """One distribution; `source` is `pep723`, `mapping` or `same_name`."""

    requirement: str
    source: str
    import_name: str = ""


class RequirementError(ValueError):
    """A requirement is rejected; the message says why."""


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The dependencies of a source; `requires_python` is empty if not declared."""

    requirements: tuple[Requirement, ...]
    requires_python: str
    diagnostics: tuple[Diagnostic, ...]


def declared_dependencies(code: str) -> Dependencies | None:
    """Parse the PEP 723 block, which is authoritative; None without one. Takes up to 0.1 s."""
    found: list[Diagnostic] = []
    block = _find_block(code, found)
    if block is not None:
        line, text = block
        return _read_block(text, line, found)
    return Dependencies((), "", tuple(found)) if found else None


def suggested_dependencies(imports: Sequence[Import]) -> Dependencies:
    """Guess the dependencies of a source that declares none, from its imports."""
    found: list[Diagnostic] = []
    return Dependencies(_guess(imports, found), "", tuple(found))


def normalise(text: str) -> str:
    """Return a requirement in canonical form; raises RequirementError if it is rejected."""
    stripped = text.strip()
    if not stripped or not _PRINTABLE.fullmatch(text) or len(text) > _TEXT_CHARS_MAX:
        raise RequirementError(
            f"a requirement is one line of 1 to {_TEXT_CHARS_MAX} plain ASCII characters"
        )
    if stripped.startswith("-"):
        raise RequirementError("options of an installer are refused")
    if ";" in stripped:
        raise RequirementError("environment markers and a second requirement are refused")
    if "://" in stripped or "@" in stripped or stripped.startswith((".", "/", "~", "\\")):
        raise RequirementError("addresses and paths are refused; name a distribution of the index")
    try:
        parsed = Parsed(stripped)
    except InvalidRequirement as error:
        raise RequirementError(str(error).splitlines()[0][:200]) from None
    return _canonical(parsed)


def _canonical(parsed: Parsed) -> str:
    if parsed.url or parsed.marker:
        raise RequirementError("addresses, paths and markers are refused")
    if len(parsed.name) > _NAME_CHARS_MAX or len(parsed.extras) > _EXTRAS_MAX:
        raise RequirementError(
            f"a name has at most {_NAME_CHARS_MAX} characters, and {_EXTRAS_MAX} extras"
        )
    if len(parsed.specifier) > _SPECIFIERS_MAX:
        raise RequirementError(f"has more than {_SPECIFIERS_MAX} version clauses")
    if any(clause.operator == "===" for clause in parsed.specifier):
        raise RequirementError("the operator === is refused; use ==")
    extras = ",".join(sorted(canonicalize_name(extra) for extra in parsed.extras))
    name = canonicalize_name(parsed.name)
    return f"{name}[{extras}]{parsed.specifier}" if extras else f"{name}{parsed.specifier}"


def _find_block(code: str, found: list[Diagnostic]) -> tuple[int, str] | None:
    """Find the `script` block of PEP 723, in one pass over the lines."""
    if "# /// " not in code:
        return None
    lines = code.splitlines()
    blocks: list[tuple[int, str]] = []
    place = 0
    while place < len(lines):
        start = _BLOCK_START.fullmatch(lines[place])
        if start is None:
            place += 1
            continue
        end = _end_of_block(lines, place)
        if end is None:
            place = _after_comment(lines, place)
            continue
        if start["kind"] == "script":
            content = "\n".join(each[2:] for each in lines[place + 1 : end])
            blocks.append((place + 1, content))
        place = end + 1
    if len(blocks) > 1:
        message = "the source has two `# /// script` blocks"
        found.append(
            Diagnostic("error", "PEP723_INVALID", message, "keep only one", blocks[1][0], 1)
        )
        return None
    return blocks[0] if blocks else None


def _end_of_block(lines: Sequence[str], start: int) -> int | None:
    """Return the last `# ///` line of the comment that starts a block, None without one."""
    last = None
    for place in range(start + 1, _after_comment(lines, start)):
        if lines[place] == "# ///":
            last = place
    return last


def _after_comment(lines: Sequence[str], start: int) -> int:
    place = start + 1
    while place < len(lines) and (lines[place] == "#" or lines[place].startswith("# ")):
        place += 1
    return place


def _read_block(text: str, line: int, found: list[Diagnostic]) -> Dependencies:
    table = _toml(text, line, found)
    declared = table.get("dependencies", [])
    requires = table.get("requires-python", "")
    if not isinstance(declared, list) or not all(isinstance(each, str) for each in declared):
        found.append(_fault("PEP723_INVALID", "dependencies is an array of text", line))
        declared = []
    if not isinstance(requires, str) or len(requires) > _TEXT_CHARS_MAX:
        message = f"requires-python is text of at most {_TEXT_CHARS_MAX} characters"
        found.append(_fault("PEP723_INVALID", message, line))
        requires = ""
    if len(declared) > REQUIREMENTS_MAX:
        message = f"{len(declared)} requirements; at most {REQUIREMENTS_MAX} are taken"
        hint = "declare those that the source imports; what they need comes with them"
        found.append(_fault("TOO_MANY_REQUIREMENTS", message, line, hint))
        declared = []
    requirements: dict[str, Requirement] = {}
    for each in declared:
        try:
            canonical = normalise(each)
        except RequirementError as error:
            message = f"dependencies: {each[:100]!r}: {error}"
            found.append(_fault("REQUIREMENT_REFUSED", message, _line_of(text, each, line)))
            continue
        requirements.setdefault(canonical, Requirement(canonical, "pep723"))
    return Dependencies(tuple(requirements.values()), requires, tuple(found))


def _toml(text: str, line: int, found: list[Diagnostic]) -> dict[str, Any]:
    if len(text.encode()) > _BLOCK_BYTES_MAX:
        message = f"the block has more than {_BLOCK_BYTES_MAX} bytes"
        found.append(_fault("PEP723_INVALID", message, line))
        return {}
    long_key = _LONG_KEY.search(text)
    if long_key is not None:
        message = f"a key has more than {_KEY_PARTS_MAX} parts"
        place = line + 1 + text.count("\n", 0, long_key.start())
        found.append(_fault("PEP723_INVALID", message, place))
        return {}
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        message = str(error).splitlines()[0][:200] if str(error) else "nested too deeply"
        found.append(_fault("PEP723_INVALID", f"the block is not TOML: {message}", line))
        return {}


def _line_of(text: str, requirement: str, line: int) -> int:
    for offset, each in enumerate(text.splitlines(), start=1):
        if requirement.splitlines()[:1] and requirement.splitlines()[0] in each:
            return line + offset
    return line


def _fault(code: str, message: str, line: int, hint: str = _HINT) -> Diagnostic:
    return Diagnostic("error", code, message, hint, line, 1)


def check_python(requires: str, python_version: str) -> Diagnostic | None:
    """Return a diagnostic if a declared `requires-python` excludes the node's Python version."""
    if not requires:
        return None
    try:
        admitted = SpecifierSet(requires)
    except InvalidSpecifier:
        return _fault("PEP723_INVALID", f"requires-python {requires[:100]!r} is not understood", 0)
    # It is enough if some patch release is admitted; these sample the range.
    if any(admitted.contains(f"{python_version}.{patch}") for patch in (0, 5, 20, 99)):
        return None
    return Diagnostic(
        "error",
        "PYTHON_VERSION_CONFLICT",
        f"the source requires Python {requires[:100]}, the node asks for {python_version}",
        "change python_version or requires-python",
    )


def _guess(imports: Sequence[Import], found: list[Diagnostic]) -> tuple[Requirement, ...]:
    requirements: dict[str, Requirement] = {}
    for each in imports:
        if each.standard or each.name in _PROVIDED or not each.name:
            continue
        if each.guarded:
            found.append(
                Diagnostic(
                    "info",
                    "IMPORT_OPTIONAL",
                    f"{each.name} is an optional import; it is not installed",
                    "declare it in a `# /// script` block if the node needs it",
                    each.line,
                    each.column,
                )
            )
            continue
        for requirement in _distributions(each):
            requirements.setdefault(requirement.requirement, requirement)
    if len(requirements) > REQUIREMENTS_MAX:
        message = f"{len(requirements)} distributions; at most {REQUIREMENTS_MAX} are taken"
        found.append(_fault("TOO_MANY_REQUIREMENTS", message, 0))
        return ()
    return tuple(requirements.values())


def _distributions(each: Import) -> list[Requirement]:
    if each.name in NAMESPACES:
        known = [
            (module, distribution)
            for module in each.modules
            for prefix, distribution in NAMESPACES[each.name].items()
            if module == prefix or module.startswith(prefix + ".")
        ]
        if known:
            return [Requirement(name, "mapping", module) for module, name in known]
    mapped = DISTRIBUTIONS.get(each.name) or widely_known().get(each.name)
    if mapped is not None:
        return [Requirement(mapped, "mapping", each.name)]
    try:
        return [Requirement(normalise(each.name), "same_name", each.name)]
    except RequirementError:
        return []
