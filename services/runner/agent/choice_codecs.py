"""Codecs of unions, literals and enums."""

from .kinds import by_precision, type_name
from .plain import encode_any
from .problems import Mismatch, expected
from .unions import first_of, told_apart, union_encoder


class ChoiceCodecs:
    """Codecs of unions, literals and enums."""

    def _decode_union(self, kind, depth):
        options = [self.decoder(option, depth) for option in by_precision(kind["any_of"])]
        return first_of(options, type_name(kind))

    def _encode_union(self, kind, depth):
        options = by_precision(kind["any_of"])
        carried = any(option.get("t") in self.carried for option in options)
        if carried and not told_apart(options, self.find):
            raise Mismatch(
                "in %s, what is in a file cannot be told from what is not" % type_name(kind),
                "serialization_error",
            )
        if told_apart(options, self.find):
            members = [(option, self.encoder(option, depth), None) for option in options]
        else:
            members = [
                (option, self.encoder(option, depth), self.decoder(option, depth))
                for option in options
            ]
        return union_encoder(kind, members)

    def _decode_literal(self, kind, depth):
        values = kind["values"]

        def decode(plain):
            for value in values:
                if type(value) is type(plain) and value == plain:
                    return plain
            raise Mismatch("expected one of the %d literal values" % len(values))

        return decode

    def _encode_literal(self, kind, depth):
        return self._decode_literal(kind, depth)

    def _decode_enum(self, kind, depth):
        import enum

        cls = self.find(kind["name"])
        combines = issubclass(cls, enum.Flag)

        def decode(plain):
            for member in cls:
                value = member.value
                if type(value) is type(plain) and value == plain:
                    return member
            if combines and type(plain) is int:
                try:
                    made = cls(plain)
                    if made.value == plain:  # Python 3.11.2 drops bits that no member has
                        return made
                except ValueError:
                    pass
            raise Mismatch("not a value of %s" % kind["name"])

        return decode

    def _encode_enum(self, kind, depth):
        cls = self.find(kind["name"])

        def encode(value):
            if not isinstance(value, cls):
                raise expected(kind["name"], value)
            return encode_any(value.value)

        return encode
