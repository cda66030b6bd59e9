"""Codecs by declared type, compiled once per node version into closures.

`decoder(type)` returns a function from plain JSON to a value, `encoder(type)` the reverse.
"""

from .choice_codecs import ChoiceCodecs
from .container_codecs import ContainerCodecs
from .key_codecs import KeyCodecs
from .kinds import CARRIED, type_name
from .moment_codecs import MomentCodecs
from .plain import MAX_DEPTH
from .problems import Mismatch
from .record_codecs import RecordCodecs
from .scalar_codecs import ScalarCodecs


class Codecs(ScalarCodecs, MomentCodecs, ContainerCodecs, KeyCodecs, ChoiceCodecs, RecordCodecs):
    """Compiles codecs; classes are looked up by name in the user's own module."""

    carried = CARRIED

    def __init__(self, namespace):
        self.namespace = namespace
        self.hashed = False  # whether values are compiled for a set or a key, so must be hashable

    def find(self, name):
        found = self.namespace
        for position, part in enumerate(name.split(".")):
            found = found.get(part) if position == 0 else getattr(found, part, None)
            if found is None:
                raise Mismatch("the class %s is not defined in the node's code" % name)
        return found

    def decoder(self, kind, depth=0):
        if depth > MAX_DEPTH:
            raise Mismatch("the declared type is nested deeper than 64")
        make = getattr(self, "_decode_%s" % kind.get("t"), None)
        if make is None:
            raise Mismatch("values of type %s cannot be passed to a node" % type_name(kind))
        return make(kind, depth + 1)

    def encoder(self, kind, depth=0):
        if depth > MAX_DEPTH:
            raise Mismatch("the declared type is nested deeper than 64")
        make = getattr(self, "_encode_%s" % kind.get("t"), None)
        if make is None:
            raise Mismatch(
                "values of type %s cannot leave a node" % type_name(kind), "serialization_error"
            )
        return make(kind, depth + 1)

    def hashed_decoder(self, kind, depth):
        outer, self.hashed = self.hashed, True
        try:
            return self.decoder(kind, depth)
        finally:
            self.hashed = outer
