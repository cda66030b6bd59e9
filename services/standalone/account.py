"""The user that PostgreSQL runs as: it refuses root, and initdb refuses a user without a name."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from services.standalone import process
from services.standalone.process import StandaloneError

# Candidates to run as, first match wins; a real name is needed, since initdb looks it up.
_ORDINARY_USERS: Final = ("postgres", "nobody", "daemon", "bin")


class Account:
    """The identity under which a program runs in a folder; determined by trying.

    Our own user if possible; otherwise a user namespace in which we appear as another user;
    otherwise, if namespaces are not allowed, that other user, who then owns the folder.
    """

    def __init__(self, folder: Path, *, program: Path, env: Mapping[str, str]) -> None:
        """Nothing runs yet; `program --version` is run to probe identities."""
        self._folder = folder
        self._program = program
        self._env = env

    @cached_property
    def identity(self) -> str:
        """The identity, in the form that `process.start` takes."""
        if os.geteuid() != 0 and _is_named(os.geteuid()):
            return "same"
        with contextlib.suppress(FileNotFoundError):
            owner = (self._folder / "data").stat()
            if owner.st_uid != os.geteuid():
                return f"{owner.st_uid}:{owner.st_gid}"
        user = _ordinary_user()
        namespace = f"namespace:{user.pw_uid}"
        if self.can_run_as(namespace):
            return namespace
        if os.geteuid() != 0:
            raise StandaloneError(
                f"PostgreSQL cannot be set up by user {os.geteuid()}, who has no name here, while "
                "user namespaces are barred: start Qflow as a user listed in /etc/passwd, or set "
                "QFLOW_DATABASE_URL to your own server"
            )
        dropped = f"{user.pw_uid}:{user.pw_gid}"
        self._give_tree(user.pw_uid, user.pw_gid)
        self._open_the_way()
        if self.can_run_as(dropped):
            return dropped
        raise StandaloneError(
            "PostgreSQL does not run as root; here user namespaces are barred, and another user "
            f"cannot reach {self._folder} or {self._program}. Start Qflow as an ordinary user, or "
            "put both in a folder that all users may enter (QFLOW_HOME=/var/lib/qflow), or set "
            "QFLOW_DATABASE_URL to your own server"
        )

    @property
    def keeps_owner(self) -> bool:
        """Whether the program's files stay owned by us."""
        return self.identity == "same" or self.identity.startswith("namespace:")

    def own(self, path: Path) -> None:
        """Change the owner of a path to the account, unless that is ours."""
        if not self.keeps_owner:
            uid, gid = (int(part) for part in self.identity.split(":"))
            os.chown(path, uid, gid)

    def can_run_as(self, identity: str) -> bool:
        """Return whether the program starts in the folder under an identity, by starting it."""
        child = process.start(
            [str(self._program), "--version"],
            log=None,
            env=self._env,
            cwd=self._folder,
            identity=identity,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if child.wait() != 0:
            return False
        if identity.startswith("namespace:"):
            return True
        uid = int(identity.partition(":")[0])
        return all(_may_enter(parent, uid) for parent in self._folder.absolute().parents)

    def _open_the_way(self) -> None:
        """Let other users traverse our home, which is created closed; its contents stay closed."""
        home = self._folder.absolute().parent
        status = home.stat()
        if status.st_uid == os.geteuid():
            home.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)

    def _give_tree(self, uid: int, gid: int) -> None:
        for top, folders, files in os.walk(self._folder):
            for name in (".", *folders, *files):
                os.chown(Path(top) / name, uid, gid, follow_symlinks=False)


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary_user() -> pwd.struct_passwd:
    for name in _ORDINARY_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    ordinary = [user for user in pwd.getpwall() if user.pw_uid != 0]
    if not ordinary:
        raise StandaloneError(
            "PostgreSQL does not run as root, and this machine has no other user: add one "
            "(`useradd --system postgres`), or set QFLOW_DATABASE_URL to your own server"
        )
    return ordinary[0]


def _may_enter(folder: Path, uid: int) -> bool:
    status = folder.stat()
    return bool(status.st_mode & 0o001) or (status.st_uid == uid and bool(status.st_mode & 0o100))
