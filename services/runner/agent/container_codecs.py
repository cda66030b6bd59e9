"""Codecs of lists, tuples, sets and dicts."""

from .plain import dump
from .problems import Mismatch, at_index, at_key, expected
from .unions import SEQUENCES, SETS


def _each(codecs, values):
    out = []
    try:
        for codec, value in zip(codecs, values):
            out.append(codec(value))
    except Mismatch as problem:
        raise problem.under(at_index(len(out)))
    return out


class ContainerCodecs:
    """Codecs of lists, tuples, sets and dicts."""

    def _items_decoder(self, kind, depth, build, name):
        compiled = self.hashed_decoder if build in (set, frozenset) else self.decoder
        item = compiled(kind.get("item") or {"t": "any"}, depth)

        def decode(plain):
            if type(plain) is not list:
                raise expected(name, plain)
            out = []
            try:
                for element in plain:
                    out.append(item(element))
            except Mismatch as problem:
                raise problem.under(at_index(len(out)))
            if build is list:
                return out
            try:
                built = build(out)
            except TypeError:
                raise Mismatch("an element of the %s is not hashable" % name) from None
            if len(built) != len(out):
                raise Mismatch("two elements of the %s are equal" % name)
            return built

        return decode

    def _items_encoder(self, kind, depth, classes, name, ordered=True):
        item = self.encoder(kind.get("item") or {"t": "any"}, depth)

        def encode(value):
            if not isinstance(value, classes):
                raise expected(name, value)
            out = []
            try:
                for element in value:
                    out.append(item(element))
            except Mismatch as problem:
                raise problem.under(at_index(len(out)))
            if not ordered:  # sorted, so that equal sets have equal texts
                try:
                    out.sort()
                except TypeError:
                    out.sort(key=dump)
            return out

        return encode

    def _decode_list(self, kind, depth):
        return self._items_decoder(kind, depth, list, "list")

    def _encode_list(self, kind, depth):
        return self._items_encoder(kind, depth, SEQUENCES, "list")

    def _decode_set(self, kind, depth):
        return self._items_decoder(kind, depth, set, "set")

    def _encode_set(self, kind, depth):
        return self._items_encoder(kind, depth, SETS, "set", ordered=False)

    def _decode_frozenset(self, kind, depth):
        return self._items_decoder(kind, depth, frozenset, "frozenset")

    def _encode_frozenset(self, kind, depth):
        return self._items_encoder(kind, depth, SETS, "frozenset", ordered=False)

    def _decode_tuple(self, kind, depth):
        if "items" not in kind:
            return self._items_decoder(kind, depth, tuple, "tuple")
        items = [self.decoder(item, depth) for item in kind["items"]]

        def decode(plain):
            if type(plain) is not list or len(plain) != len(items):
                raise expected("a tuple of %d" % len(items), plain)
            return tuple(_each(items, plain))

        return decode

    def _encode_tuple(self, kind, depth):
        if "items" not in kind:
            return self._items_encoder(kind, depth, tuple, "tuple")
        items = [self.encoder(item, depth) for item in kind["items"]]

        def encode(value):
            if not isinstance(value, tuple) or len(value) != len(items):
                raise expected("a tuple of %d" % len(items), value)
            return _each(items, value)

        return encode

    def _decode_dict(self, kind, depth):
        value_of = self.decoder(kind.get("value") or {"t": "any"}, depth)
        key_of = self._key_decoder(kind.get("key") or {"t": "str"}, depth)

        def decode(plain):
            if type(plain) is not dict:
                raise expected("dict", plain)
            out = {}
            for key, item in plain.items():
                try:
                    out[key_of(key)] = value_of(item)
                except Mismatch as problem:
                    raise problem.under(at_key(key))
            if len(out) != len(plain):
                raise Mismatch("two keys are equal")
            return out

        return decode

    def _encode_dict(self, kind, depth):
        value_of = self.encoder(kind.get("value") or {"t": "any"}, depth)
        key_of = self._key_encoder(kind.get("key") or {"t": "str"}, depth)

        def encode(value):
            if not isinstance(value, dict):
                raise expected("dict", value)
            out = {}
            for key, item in value.items():
                text = key_of(key)
                try:
                    out[text] = value_of(item)
                except Mismatch as problem:
                    raise problem.under(at_key(text))
            if len(out) != len(value):
                raise Mismatch("two keys have the same text", "serialization_error")
            return out

        return encode
