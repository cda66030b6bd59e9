"""Bills of materials of environments, in CycloneDX; packages are read, never run."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from services.runner.domain.environments import Package

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_METADATA_BYTES_MAX: Final = 1024 * 1024
_LICENSE_CHARS_MAX: Final = 100
_SUMMARY_CHARS_MAX: Final = 500


def bill_of_materials(
    folder: Path, packages: Iterable[Package], *, key: str, python_version: str
) -> str:
    """Return the document: packages with versions, hashes, licences and dependencies.

    The hashes are all those that the lock allows; that of the installed wheel is one of them. Slow
    the first time, when the library is imported; call it in a thread.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    known = _metadata_in(folder)
    root = Component(name=key, type=ComponentType.APPLICATION, bom_ref=key)
    interpreter = Component(
        name="python", version=python_version, type=ComponentType.PLATFORM, bom_ref="python"
    )
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, key))
    bom.metadata.component = root
    components = {each.name: _component(each, known.get(each.name)) for each in packages}
    for component in (interpreter, *components.values()):
        bom.components.add(component)
    bom.register_dependency(root, [interpreter, *components.values()])
    for name, component in components.items():
        needed = {components[each] for each in _needs(known.get(name)) if each in components}
        bom.register_dependency(component, needed)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()


def _component(package: Package, metadata: Message | None) -> Component:
    from cyclonedx.model import (
        ExternalReference,
        ExternalReferenceType,
        HashAlgorithm,
        HashType,
        XsUri,
    )
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    purl = PackageURL("pypi", name=package.name, version=package.version)
    wheels = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(purl.to_string()),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.sha256],
    )
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        description=_text(metadata, "Summary", _SUMMARY_CHARS_MAX) or None,
        licenses=_licenses(metadata),
        external_references=[wheels],
    )


def _licenses(metadata: Message | None) -> list[Any]:
    from cyclonedx.contrib.license.exceptions import InvalidLicenseExpressionException
    from cyclonedx.contrib.license.factories import LicenseFactory

    factory = LicenseFactory()
    expression = _text(metadata, "License-Expression", _LICENSE_CHARS_MAX)
    if expression:
        try:
            return [factory.make_with_expression(expression)]
        except InvalidLicenseExpressionException:
            return [factory.make_with_name(expression)]
    named = _text(metadata, "License", _LICENSE_CHARS_MAX)  # some packages have the whole text
    return [factory.make_from_string(named)] if named and "\n" not in named else []


def _needs(metadata: Message | None) -> set[str]:
    found: set[str] = set()
    for text in metadata.get_all("Requires-Dist", []) if metadata is not None else ():
        try:
            found.add(canonicalize_name(Requirement(str(text)).name))
        except InvalidRequirement:
            continue
    return found


def _metadata_in(folder: Path) -> dict[str, Message]:
    found: dict[str, Message] = {}
    for path in folder.glob("*.dist-info/METADATA"):
        known = path.lstat()
        if not path.is_symlink() and known.st_size <= _METADATA_BYTES_MAX:
            headers = BytesHeaderParser().parsebytes(path.read_bytes())
            found[canonicalize_name(str(headers.get("Name", "")))] = headers
    return found


def _text(metadata: Message | None, name: str, chars_max: int) -> str:
    value = str(metadata.get(name, "")) if metadata is not None else ""
    value = "".join(each for each in value if each.isprintable() or each == "\n").strip()
    return value if len(value) <= chars_max else ""
