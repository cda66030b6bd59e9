"""The names of user code's module and file, and the types of its objects."""

import sys

MODULE = "qflow_node"
FILENAME = "node.py"
ModuleType, FunctionType = type(sys), type(lambda: 0)


async def _nothing():
    pass


_made = _nothing()
CoroutineType = type(_made)
_made.close()
