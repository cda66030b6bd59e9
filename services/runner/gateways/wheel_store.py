"""Contents of tenants' wheels, below one folder: `<tenant>/<id>`, complete once they appear.

Installers search a folder of files with wheel names. That folder has links made from the rows, so
that bytes without a row never appear in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from services.kit import child
from services.kit.ids import canonical_uuid

_READER: Final = Path(__file__).with_name("wheel_reader.py")
_READ_S: Final = 60.0
# Longer than any upload.
_LEFT_S: Final = 86_400.0
_ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024


class WheelRefusedError(Exception):
    """The file is not a valid wheel; the message is fit for its author."""


@dataclass(frozen=True, slots=True)
class WheelTexts:
    """The metadata of a wheel."""

    folder: str
    metadata: str
    wheel: str


class Upload:
    """A wheel being received, invisible until it is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self.path = folder / f".{uuid.uuid4()}"
        self._descriptor = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def add(self, chunk: bytes) -> None:
        """Write the next bytes."""
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def sha256(self) -> str:
        """Return the digest of the bytes so far."""
        return self._digest.hexdigest()

    def keep(self, wheel_id: UUID) -> None:
        """Make the bytes durable, under their id."""
        os.fsync(self._descriptor)
        self.path.replace(self._folder / str(wheel_id))
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """End the upload; what was not kept is deleted."""
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)


class WheelStore:
    """A folder of this machine, or one shared by several."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def upload(self, tenant_id: UUID) -> Upload:
        """Begin to receive a wheel."""
        return Upload(self._root / str(tenant_id))

    def remove(self, tenant_id: UUID, wheel_id: UUID) -> None:
        """Remove a wheel's bytes; does nothing if they are gone already."""
        (self._root / str(tenant_id) / str(wheel_id)).unlink(missing_ok=True)

    def tenants(self) -> list[UUID]:
        """Return the tenants that have a folder."""
        found = [*self._root.iterdir()] if self._root.is_dir() else []
        return [each for path in found if (each := canonical_uuid(path.name)) is not None]

    def sweep(self, tenant_id: UUID, known: set[UUID]) -> int:
        """Remove old files that belong to no known wheel; return how many."""
        found = 0
        for path in (self._root / str(tenant_id)).iterdir():
            wheel_id = canonical_uuid(path.name)
            if wheel_id in known or path.lstat().st_mtime > time.time() - _LEFT_S:
                continue
            path.unlink(missing_ok=True)
            found += 1
        return found

    def show(self, tenant_id: UUID, wheels: Mapping[str, UUID], folder: Path) -> None:
        """Fill a folder with links to exactly these wheels, by file name.

        A wheel whose bytes are not here, as on a machine that does not share the folder, is left
        out: what needs it cannot be resolved or built here.
        """
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name not in wheels:
                path.unlink(missing_ok=True)
        for name, wheel_id in wheels.items():
            source, place = self._root / str(tenant_id) / str(wheel_id), folder / name
            with suppress(FileNotFoundError):
                if place.exists():
                    if place.samefile(source):
                        continue
                    place.unlink(missing_ok=True)
                with suppress(FileExistsError):
                    place.hardlink_to(source)

    async def read(self, path: Path) -> WheelTexts:
        """Check a wheel in a separate process; raises WheelRefusedError."""
        try:
            done = await child.run(
                [sys.executable, "-I", "-S", str(_READER), str(path)],
                stdin=b"",
                env={"LC_ALL": "C.UTF-8"},
                timeout_s=_READ_S,
                output_bytes_max=_ANSWER_BYTES_MAX,
            )
        except (TimeoutError, child.OutputTooLargeError):
            raise WheelRefusedError("it takes too long to read") from None
        if done.code != 0:
            raise WheelRefusedError("it takes too much memory to read")
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise WheelRefusedError(answer["error"])
        return WheelTexts(**answer)
