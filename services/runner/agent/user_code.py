"""What user code is called, and what its objects are."""

import sys

MODULE = "qflow_node"
FILENAME = "node.py"
ModuleType, FunctionType = type(sys), type(lambda: 0)


async def _nothing():
    pass


_made = _nothing()
CoroutineType = type(_made)
_made.close()
