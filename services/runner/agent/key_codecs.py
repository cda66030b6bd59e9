"""Codecs of the keys of dicts."""

from .kinds import TEXT_KINDS, as_it_is, keys_by_precision, type_name
from .plain import dump, parse_text, plain_key
from .problems import Mismatch
from .unions import first_of, union_encoder


class KeyCodecs:
    """Codecs of the keys of dicts."""

    def _key_decoder(self, kind, depth):
        """Decode a key: the text of its value, or its JSON if that is no text: `1`, `[1,2]`."""
        tag = kind.get("t")
        if tag in ("str", "any"):
            return as_it_is
        if tag == "union":
            options = [self._key_decoder(each, depth + 1) for each in keys_by_precision(kind)]
            return first_of(options, type_name(kind))
        decode = self.hashed_decoder(kind, depth)
        if tag in TEXT_KINDS:
            return decode

        def decode_key(key):
            if tag in ("literal", "enum"):
                try:
                    return decode(key)
                except Mismatch:
                    pass
            try:
                if key.strip() == key:
                    found = decode(parse_text(key))
                    hash(found)
                    return found
            except (ValueError, TypeError, RecursionError):
                pass
            raise Mismatch("the key is not %s" % type_name(kind))

        return decode_key

    def _key_encoder(self, kind, depth):
        tag = kind.get("t")
        if tag == "any":
            return plain_key
        if tag == "union":
            members = [
                (option, self._key_encoder(option, depth + 1), self._key_decoder(option, depth + 1))
                for option in keys_by_precision(kind)
            ]
            return union_encoder(kind, members)
        encode = self.encoder(kind, depth)

        def encode_key(key):
            plain = encode(key)
            return plain if type(plain) is str else dump(plain)

        if tag not in ("literal", "enum"):
            return encode_key
        decode = self._key_decoder(kind, depth)

        def encode_constant(key):
            text = encode_key(key)
            found = decode(text)
            if type(found) is not type(key) or found != key:
                raise Mismatch(
                    "two keys of %s have the same text" % type_name(kind), "serialization_error"
                )
            return text

        return encode_constant
