"""What the client takes of the agent, the code that runs beside user code in a sandbox.

Its folder stands here as `_sandboxed`.
"""

from qflow._sandboxed.codecs import Codecs
from qflow._sandboxed.conversions import CONVERSIONS
from qflow._sandboxed.plain import parse
from qflow._sandboxed.problems import Mismatch

__all__ = ["CONVERSIONS", "Codecs", "Mismatch", "parse"]
