"""A home and a folder of backups beside a test's own database."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from services.standalone.backup.folder import BackupFolder, Entry
from services.standalone.backup.manifest import Kind, Manifest, Report
from services.standalone.backup.source import Source
from services.standalone.backup.take import take
from services.standalone.backup.verify import verify
from services.standalone.home import Home
from services.standalone.postgres import Binaries
from tests import factories
from tests.support.database import Database

KEY = bytes(range(32))


@dataclass
class Place:
    """What a deployment has: a database, a home, a folder for backups."""

    root: Path
    database: Database
    key: bytes | None = None
    home: Home = field(init=False)
    folder: BackupFolder = field(init=False)

    def __post_init__(self) -> None:
        self.home = Home(self.root / "home")
        self.home.make()
        self.folder = BackupFolder(self.root / "backups", self.home)

    @property
    def binaries(self) -> Binaries:
        return Binaries.find(os.environ)

    @property
    def source(self) -> Source:
        return Source(self.database.url("qflow_backup"), self.binaries)

    @property
    def files(self) -> Path:
        return self.home.root / "files"

    def take(self, kind: Kind = "base") -> Manifest:
        return take(self.source, self.folder, kind=kind, files=self.files, key=self.key)

    def verify(self, backup_id: str = "latest") -> Report:
        return verify(
            self.folder,
            self.entry(backup_id),
            binaries=self.binaries,
            key=self.key,
            scratch=self.root / "scratch",
        )

    def entry(self, backup_id: str = "latest") -> Entry:
        return self.folder.entry(backup_id)

    def add_file(self, content: bytes) -> str:
        """Store a file as a runner does: its bytes, then its row."""
        with self.database.connect() as db:
            user = str(factories.user(db).id)
            file_id = str(uuid.uuid4())
            path = self.files / user / file_id
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            insert_file(db, user, file_id, content)
        return f"{user}/{file_id}"


def insert_file(db: psycopg.Connection, user: str, file_id: str, content: bytes) -> None:
    db.execute(
        """
        INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,
                           hash_sha256, tenant_id, created_by)
        VALUES (%(id)s, 'f', 'f', %(path)s, %(size)s, %(sha256)s, %(user)s, %(user)s)
        """,
        {
            "id": file_id,
            "path": f"{user}/{file_id}",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "user": user,
        },
    )
