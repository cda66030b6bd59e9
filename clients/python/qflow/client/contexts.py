"""Where Qflow is and whom to call it as: named contexts in a file, or the suite of this machine.

A context is searched in this order: what the program passes; the environment (`QFLOW_REGISTRY` and
the others with `QFLOW_TOKEN`; `QFLOW_CONTEXT`, a context by name; `QFLOW_HOME`, the home of a suite
on this machine); the current context of the file, which `qflow login` sets; `.qflow` in the current
folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from qflow.exceptions import ConfigurationError

SERVICES: Final = ("registry", "orchestrator", "runner", "telemetry")
_FILE_MODE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS of a connection: the authority to trust, and the client certificate, if needed.

    Files are PEM; an empty `ca_file` trusts the authorities of this machine.
    """

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The addresses of the services (`host:port`), the token, and TLS (None: not encrypted).

    `tenant` is the id of the team to act for; empty for oneself. `QFLOW_TENANT` overrides it.
    """

    registry: str
    orchestrator: str
    runner: str
    telemetry: str
    token: str = field(default="", repr=False)
    tls: Tls | None = None
    tenant: str = ""

    def address(self, service: str) -> str:
        """Return the address of a service."""
        found: str = getattr(self, service)
        return found


def find(env: Mapping[str, str] | None = None, *, name: str = "", home: str = "") -> Context:
    """Find the context; raises ConfigurationError with where it was searched."""
    env = os.environ if env is None else env
    found = _find(env, name=name, home=home)
    tenant = env.get("QFLOW_TENANT", "")
    return replace(found, tenant=tenant) if tenant else found


def _find(env: Mapping[str, str], *, name: str, home: str) -> Context:
    if not name and not home and (told := _from_env(env)) is not None:
        return told
    contexts = Contexts.load(env)
    wanted = name or (env.get("QFLOW_CONTEXT", "") if not home else "")
    if wanted:
        return contexts.get(wanted)
    if not home and contexts.current and not env.get("QFLOW_HOME"):
        return contexts.get(contexts.current)
    return of_home(Path(home or env.get("QFLOW_HOME", "") or ".qflow"), env)


def of_home(home: Path, env: Mapping[str, str] | None = None) -> Context:
    """Return the context of the suite with this home on this machine, as its owner."""
    env = os.environ if env is None else env
    try:
        addresses: dict[str, str] = json.loads((home / "run" / "endpoints.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise ConfigurationError(
            f"no Qflow is told of, and none runs on {home}: start one, or say where it is "
            "(`qflow login ADDRESS`, or QFLOW_REGISTRY, QFLOW_ORCHESTRATOR, QFLOW_RUNNER, "
            "QFLOW_TELEMETRY and QFLOW_TOKEN)"
        ) from None
    token = env.get("QFLOW_TOKEN", "")
    if not token:
        try:
            token = (home / "secrets" / "owner.token").read_text("utf-8").strip()
        except OSError as error:
            raise ConfigurationError(f"the owner's token cannot be read: {error}") from None
    told: dict[str, Any] = {each: addresses[each] for each in SERVICES}
    if authorities := addresses.get("authorities"):  # the suite speaks TLS
        told["tls"] = {"ca_file": authorities}
    return _context({**told, "token": token})


@dataclass(frozen=True, slots=True)
class Contexts:
    """The file of contexts, and the current one."""

    path: Path
    current: str
    known: Mapping[str, Context]

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None) -> Contexts:
        """Read the file; a missing one is empty."""
        env = os.environ if env is None else env
        path = _path(env)
        try:
            told: Any = json.loads(path.read_text("utf-8"))
            known = {name: _context(each) for name, each in told["contexts"].items()}
            return cls(path, told.get("current", ""), known)
        except FileNotFoundError:
            return cls(path, "", {})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"{path} cannot be read as contexts: {error}") from None

    def get(self, name: str) -> Context:
        """Return a context by name."""
        if name not in self.known:
            there = ", ".join(sorted(self.known)) or "none is there: `qflow login` makes one"
            raise ConfigurationError(f"no context {name!r} in {self.path} ({there})")
        return self.known[name]

    def put(self, name: str, context: Context) -> Contexts:
        """Store a context under a name, and make it the current one."""
        return self._save(Contexts(self.path, name, {**self.known, name: context}))

    def use(self, name: str) -> Contexts:
        """Make this the current context."""
        self.get(name)
        return self._save(replace(self, current=name))

    def remove(self, name: str) -> Contexts:
        """Remove a context."""
        self.get(name)
        left = {key: each for key, each in self.known.items() if key != name}
        current = self.current if self.current in left else ""
        return self._save(Contexts(self.path, current, left))

    @staticmethod
    def _save(contexts: Contexts) -> Contexts:
        told = {
            "current": contexts.current,
            "contexts": {name: asdict(each) for name, each in contexts.known.items()},
        }
        contexts.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = contexts.path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(told, stream, indent=2)
        fresh.replace(contexts.path)
        return contexts


def _path(env: Mapping[str, str]) -> Path:
    if told := env.get("QFLOW_CONFIG"):
        return Path(told)
    base = env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or Path.home()) / ".config"
    return Path(base) / "qflow" / "contexts.json"


def _context(told: Mapping[str, Any]) -> Context:
    tls = told.get("tls")
    rest = {key: each for key, each in told.items() if key != "tls"}
    return Context(**rest, tls=Tls(**tls) if tls else None)


def _from_env(env: Mapping[str, str]) -> Context | None:
    addresses = {each: env.get(f"QFLOW_{each.upper()}", "") for each in SERVICES}
    if not any(addresses.values()):
        return None
    missing = [f"QFLOW_{each.upper()}" for each, address in addresses.items() if not address]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} must be set as well")
    ca_file = env.get("QFLOW_CA_FILE", "")
    tls = None
    if ca_file or env.get("QFLOW_TLS") == "1":
        tls = Tls(
            ca_file=ca_file,
            certificate_file=env.get("QFLOW_CERTIFICATE_FILE", ""),
            key_file=env.get("QFLOW_KEY_FILE", ""),
        )
    return Context(**addresses, token=env.get("QFLOW_TOKEN", ""), tls=tls)
