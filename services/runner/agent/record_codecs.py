"""Codecs of records: dataclasses, TypedDicts, NamedTuples, pydantic models."""

from .errors import safe_text
from .problems import Mismatch, at_key, expected
from .unions import ABSENT


def _built(build, values):
    try:
        return build(values)
    except Exception as problem:  # the user's constructor rejects what the types allow
        raise Mismatch(
            "the class refused the value: %s" % safe_text(problem, 500), "type_error"
        ) from None


class RecordCodecs:
    """Codecs of records: dataclasses, TypedDicts, NamedTuples, pydantic models."""

    def _decode_record(self, kind, depth):
        fields = [
            (field["name"], self.decoder(field["type"], depth), field.get("required", True))
            for field in kind["fields"]
        ]
        names = {field[0] for field in fields}
        build = self._record_builder(kind)

        def decode(plain):
            if type(plain) is not dict:
                raise expected(kind.get("name") or "record", plain)
            out = {}
            for name, field, required in fields:
                if name in plain:
                    try:
                        out[name] = field(plain[name])
                    except Mismatch as problem:
                        raise problem.under(at_key(name))
                elif required:
                    raise Mismatch("missing").under(at_key(name))
            for name in plain:
                if name not in names:
                    raise Mismatch("unknown field").under(at_key(name))
            return build(out)

        return decode

    def _record_builder(self, kind):
        how = kind.get("kind")
        if how == "typeddict":
            return lambda values: values
        cls = self.find(kind["name"])
        if how == "pydantic":
            validate = getattr(cls, "model_validate", None) or cls.parse_obj
            return lambda values: _built(validate, values)
        return lambda values: _built(lambda fields: cls(**fields), values)

    def _encode_record(self, kind, depth):
        fields = [
            (field["name"], self.encoder(field["type"], depth), field.get("required", True))
            for field in kind["fields"]
        ]
        name_of = kind.get("name") or "record"
        as_dict = kind.get("kind") == "typeddict"
        cls = dict if as_dict else self.find(kind["name"])
        names = {field[0] for field in fields}

        def encode(value):
            if not isinstance(value, cls):
                raise expected(name_of, value)
            out = {}
            for name, field, required in fields:
                found = value.get(name, ABSENT) if as_dict else getattr(value, name, ABSENT)
                if found is ABSENT:
                    if required:
                        raise Mismatch("missing").under(at_key(name))
                    continue
                try:
                    out[name] = field(found)
                except Mismatch as problem:
                    raise problem.under(at_key(name))
            if as_dict:
                for name in value:
                    if name not in names:
                        raise Mismatch("unknown field").under(at_key(str(name)))
            return out

        return encode
