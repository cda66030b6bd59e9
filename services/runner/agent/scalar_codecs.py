"""Codecs of numbers, texts, bytes and files."""

from .kinds import as_hashable, as_it_is
from .plain import check_float, check_int, check_text, encode_any, exact_float, unwrap_numpy
from .problems import Mismatch, expected
from .texts import plain_iso


class ScalarCodecs:
    """Codecs of numbers, texts, bytes and files."""

    def _decode_any(self, kind, depth):
        return as_hashable if self.hashed else as_it_is

    def _encode_any(self, kind, depth):
        return encode_any

    def _decode_int(self, kind, depth):
        def decode(plain):
            if type(plain) is not int:
                raise expected("int", plain)
            return plain

        return decode

    def _encode_int(self, kind, depth):
        def encode(value):
            if type(value) is int:
                return check_int(value)
            value = unwrap_numpy(value)
            if isinstance(value, bool) or not isinstance(value, int):
                raise expected("int", value)
            return check_int(int(value))

        return encode

    def _decode_float(self, kind, depth):
        def decode(plain):
            if type(plain) is float:
                return check_float(plain)
            if type(plain) is int:
                return exact_float(plain)
            raise expected("float", plain)

        return decode

    def _encode_float(self, kind, depth):
        def encode(value):
            if type(value) is float:
                return check_float(value)
            value = unwrap_numpy(value)
            if isinstance(value, float):
                return check_float(float(value))
            if isinstance(value, int) and not isinstance(value, bool):
                return exact_float(int(value))
            raise expected("float", value)

        return encode

    def _decode_bool(self, kind, depth):
        def decode(plain):
            if plain is True or plain is False:
                return plain
            raise expected("bool", plain)

        return decode

    def _encode_bool(self, kind, depth):
        def encode(value):
            if value is True or value is False:
                return value
            plain = unwrap_numpy(value)
            if plain is True or plain is False:
                return plain
            raise expected("bool", value)

        return encode

    def _decode_str(self, kind, depth):
        def decode(plain):
            if type(plain) is not str:
                raise expected("str", plain)
            return plain

        return decode

    def _encode_str(self, kind, depth):
        def encode(value):
            if type(value) is str:
                return check_text(value)
            if isinstance(value, str):
                return check_text(str.__str__(value))
            raise expected("str", value)

        return encode

    def _decode_none(self, kind, depth):
        def decode(plain):
            if plain is not None:
                raise expected("None", plain)

        return decode

    _encode_none = _decode_none

    def _decode_bytes(self, kind, depth):
        import base64

        def decode(plain):
            if type(plain) is not str:
                raise expected("bytes as base64 text", plain)
            try:
                return base64.b64decode(plain.encode("ascii"), validate=True)
            except ValueError:
                raise Mismatch("expected base64 text") from None

        return decode

    def _encode_bytes(self, kind, depth):
        import base64

        def encode(value):
            if not isinstance(value, (bytes, bytearray, memoryview)):
                raise expected("bytes", value)
            return base64.b64encode(value).decode("ascii")

        return encode

    def _decode_complex(self, kind, depth):
        def decode(plain):
            if (
                type(plain) is not list
                or len(plain) != 2
                or any(type(part) not in (int, float) for part in plain)
            ):
                raise expected("complex as [real, imaginary]", plain)
            return complex(exact_float(plain[0]), exact_float(plain[1]))

        return decode

    def _encode_complex(self, kind, depth):
        def encode(value):
            value = unwrap_numpy(value)
            if not isinstance(value, complex):
                raise expected("complex", value)
            return [check_float(value.real), check_float(value.imag)]

        return encode

    def _iso_decoder(self, cls, name, pattern):
        def decode(plain):
            if type(plain) is not str or not pattern.fullmatch(plain):
                raise expected("%s as ISO 8601 text" % name, plain)
            try:
                return cls.fromisoformat(plain_iso(plain))
            except ValueError:
                raise Mismatch("expected %s as ISO 8601 text" % name) from None

        return decode

    def _iso_encoder(self, check, name, pattern):
        def encode(value):
            if not check(value):
                raise expected(name, value)
            text = value.isoformat()
            if not pattern.fullmatch(text):
                raise Mismatch(
                    "the %s has no ISO 8601 text that Python reads" % name, "serialization_error"
                )
            return text

        return encode

    def _decode_carried(self, kind, depth):
        from .carried_codecs import carried_decoder

        return carried_decoder(kind["t"])

    def _encode_carried(self, kind, depth):
        from .carried_codecs import carried_encoder

        return carried_encoder(kind["t"])

    _decode_file = _decode_ndarray = _decode_arrow = _decode_carried

    _decode_pandas = _decode_polars = _decode_pickle = _decode_carried

    _encode_file = _encode_ndarray = _encode_arrow = _encode_carried

    _encode_pandas = _encode_polars = _encode_pickle = _encode_carried
