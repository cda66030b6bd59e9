"""This machine's Pythons, each with the agent compiled for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from services.kit.pythons import Interpreter as Found
from services.runner.gateways.sandbox.port import Interpreter

_AGENT: Final = Path(__file__).resolve().parents[2] / "agent"
# Run by the Python that it is for: puts the code of `main` and of its imports into the code of
# `joined`, which explains why.
_JOIN: Final = """
import importlib.util, marshal, os, re, sys

folder, target = sys.argv[1:3]
modules, later = {}, []


def text_of(name):
    with open(os.path.join(folder, name + ".py"), encoding="utf-8") as file:
        return file.read()


def compiled(name, text):
    return compile(text, "agent/%s.py" % name, "exec", dont_inherit=True)


def add(name):
    text = text_of(name)
    for other in re.findall(r"^from [.](\\w+) import ", text, re.MULTILINE):
        if other not in modules:
            add(other)
    later.extend(re.findall(r"^ +from [.](\\w+) import ", text, re.MULTILINE))
    modules[name] = compiled(name, text)


add("main")
at_once = tuple(modules.items())
for name in later:
    if name not in modules:
        add(name)
left = list(modules.items())[len(at_once) :]
joined = compiled("joined", text_of("joined"))
places = {
    "(name, code) of each": at_once,
    "(name, marshalled code) of each": tuple((name, marshal.dumps(code)) for name, code in left),
}
assert places.keys() <= set(joined.co_consts)
parts = tuple(places.get(each, each) for each in joined.co_consts)
with open(target, "wb") as file:
    file.write(importlib.util.MAGIC_NUMBER + bytes(12))
    file.write(marshal.dumps(joined.replace(co_consts=parts)))
"""


def prepare_interpreters(found: Iterable[Found], folder: Path) -> dict[str, Interpreter]:
    """Compile the agent for each Python into one file, once per version of both.

    Otherwise each sandbox would compile it again. A Python for which that fails is left out.
    """
    digest = _digest()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    prepared: dict[str, Interpreter] = {}
    for each in found:
        agent = folder / f"{each.full_version}-{digest}.pyc"
        if agent.exists() or _compile(each.path, agent):
            prepared[each.version] = Interpreter(
                version=each.version, executable=each.path, prefix=each.prefix, agent=agent
            )
    return prepared


def _digest() -> str:
    known = hashlib.sha256(_JOIN.encode())
    for path in sorted(_AGENT.glob("*.py")):
        text = path.read_bytes()
        known.update(b"%s %d\n%s" % (path.name.encode(), len(text), text))
    return known.hexdigest()[:16]


def _compile(python: Path, target: Path) -> bool:
    staged = target.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run(  # noqa: S603 - an interpreter found on this machine, our own file
            [str(python), "-I", "-S", "-c", _JOIN, str(_AGENT), str(staged)],
            capture_output=True,
            timeout=20,
            check=True,
            env={},
        )
        staged.chmod(0o644)
        staged.replace(target)
    except (OSError, subprocess.SubprocessError):
        staged.unlink(missing_ok=True)
        return False
    return True
