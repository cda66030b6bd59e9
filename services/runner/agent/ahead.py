"""What is done once for all forks."""

import os
import sys

from .agent import Agent
from .channel import Channel
from .codecs import Codecs
from .confine import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE
from .meter import Meter
from .node import Node
from .plain import dump
from .printed import SHOWN
from .residue import Nothing
from .user_code import FILENAME, MODULE


def keep_apart():
    """Make this process unreadable for its children, and the parent of their orphans."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "prctl")


_ONLY_AST = 0x400  # `ast.PyCF_ONLY_AST`: saves importing `ast`


def import_ahead(spec):
    """Import what the code imports at its top, once for all forks, without running the code.

    Errors of imports are left to the child, which reports them.
    """
    import _ast

    told = dump([spec["inputs"], spec["outputs"]])
    needed = [name for name in ("datetime", "decimal", "uuid") if '"%s' % name in told]
    if '"bytes' in told:
        needed.append("base64")
    if "async def" in spec["code"]:
        needed.append("asyncio")
    for name in needed:
        __import__(name)
    if spec.get("env") and spec["env"] not in sys.path:
        sys.path.append(spec["env"])
    try:
        lines = compile(spec["code"], FILENAME, "exec", _ONLY_AST, dont_inherit=True).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for line in lines:
        names = []
        if isinstance(line, _ast.Import):
            names = [each.name for each in line.names]
        elif isinstance(line, _ast.ImportFrom) and not line.level and line.module:
            names = [line.module]
        for name in names:
            try:
                __import__(name)
            except BaseException:
                continue


def compiled_ahead(code):
    """Return the compiled code; None if that fails: the child reports the error."""
    try:
        return compile(code, FILENAME, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_NOTHING_NODE = {
    "code": "def main(x):\n    return x\n",
    "main": "main",
    "inputs": [{"name": "x", "type": {"t": "int"}}],
    "outputs": [{"name": "result", "type": {"t": "int"}}],
}
_REHEARSALS = 16  # more than Python needs to specialise code


def rehearse(spec):
    """Run calls of a trivial node, and create the codecs of the real one.

    Python stores how code and classes are used in them. What is written before a fork is in memory
    pages shared by all forks; otherwise each fork would write it to copies of its own.
    """
    try:
        nowhere = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    agent = Agent(Channel(nowhere), Meter(-1))
    agent.residue = Nothing()
    call = {"id": 0, "inputs": [["x", 1, []]], "output_bytes_max": 1024}
    for _ in range(_REHEARSALS):
        agent.node = Node(_NOTHING_NODE)
        agent.node.run_module()
        agent.node.compile_codecs()
        agent.call({**call, "context": {"QFLOW_NODE_ID": "n"}}, b"1")
        agent.set_context({})
        codecs = Codecs({})
        for compiled, entries in ((codecs.decoder, "inputs"), (codecs.encoder, "outputs")):
            for entry in spec[entries]:
                try:
                    compiled(entry["type"])
                except Exception:  # its classes are those of the code
                    continue
    os.close(nowhere)
    del sys.modules[MODULE]
    SHOWN.node = None
