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
    """Children may not look into this process, and none of them is lost to another parent."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "prctl")


_ONLY_AST = 0x400  # `ast.PyCF_ONLY_AST`: `ast` itself would be imported for this alone


def import_ahead(spec):
    """Import what the code imports at its top, once for all forks; its own lines are not run.

    What cannot be imported is left to the child, which says why.
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
    """The compiled code, or None: what cannot be compiled is said by the child that tries."""
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
_REHEARSALS = 16  # more than it takes Python to note how code is run


def rehearse(spec):
    """Make calls of a node that does nothing, and the codecs of one to come.

    Python writes into code and classes how they are used. What it has written before a fork stands
    in pages that forks share; each would write it anew, into copies of its own.
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
                except Exception:  # classes are the code's own
                    continue
    os.close(nowhere)
    del sys.modules[MODULE]
    SHOWN.node = None
