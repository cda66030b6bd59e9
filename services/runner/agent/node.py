"""A loaded node version."""

import sys

from .carried import FILES
from .codecs import Codecs
from .conversions import converted
from .plain import dump, parse
from .printed import SHOWN
from .problems import Mismatch, describe
from .unions import ABSENT
from .user_code import FILENAME, MODULE, CoroutineType, FunctionType, ModuleType


def positional_defaults(function):
    """Return the defaults of positional-only parameters, which are passed if no value is given."""
    while isinstance(getattr(function, "__wrapped__", None), FunctionType):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is None:
        return {}
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    with_default = dict(zip(names[len(names) - len(defaults) :], defaults))
    only = names[: code.co_posonlyargcount]
    return {name: with_default[name] for name in only if name in with_default}


def _of_input(name, problem):
    """Return the same error, naming the parameter that the value was for."""
    told = Mismatch(problem.text("input %r" % name), problem.kind)
    told.input = name
    return told


class Node:
    """One loaded node version."""

    def __init__(self, spec):
        code = spec["code"]
        self.source = code.splitlines()
        self.loop = None
        self.main = None
        self.spec = spec
        if spec.get("env"):
            sys.path.append(spec["env"])
        self.module = ModuleType(MODULE)
        self.module.__file__ = FILENAME
        sys.modules[MODULE] = self.module
        SHOWN.node = self
        if "linecache" in sys.modules:
            SHOWN.show(sys.modules["linecache"])

    def show(self, linecache):
        """Let tracebacks and `inspect` show the lines of the code, which is not in a file."""
        lines = [line + "\n" for line in self.source]
        linecache.cache[FILENAME] = (len(self.spec["code"]), None, lines, FILENAME)

    def run_module(self, program=None):
        if program is None:
            program = compile(self.spec["code"], FILENAME, "exec", dont_inherit=True)
        exec(program, self.module.__dict__)  # noqa: S102 - the purpose of a sandbox
        self.main = self.module.__dict__.get(self.spec["main"])
        if not callable(self.main):
            raise Mismatch("the code defines no function %r" % self.spec["main"], "user_error")

    def compile_codecs(self):
        codecs = Codecs(self.module.__dict__)
        self.inputs = [
            (
                entry["name"],
                self._decoder_of(codecs, entry["name"], entry["type"]),
                entry.get("kind") == "keyword",
            )
            for entry in self.spec["inputs"]
        ]
        self.outputs = [
            (entry["name"], dump(entry["name"]), codecs.encoder(entry["type"]))
            for entry in self.spec["outputs"]
        ]
        self.fillers = positional_defaults(self.main)

    def _decoder_of(self, codecs, name, kind):
        annotations = getattr(self.main, "__annotations__", None)
        if kind.get("t") == "file" and isinstance(annotations, dict):
            from .carried_codecs import wants_stream

            if wants_stream(annotations.get(name)):
                return lambda plain: FILES.open(FILES.place(plain))
        return codecs.decoder(kind)

    def decode(self, header, body):
        """Return the arguments of the call: (positional, keyword)."""
        given = {}
        offset = 0
        for name, length, conversion in header["inputs"]:
            given[name] = (body[offset : offset + length], conversion)
            offset += length
        positional, keyword = [], {}
        in_order = True
        for name, decode, by_name in self.inputs:
            if name not in given:
                if in_order and name in self.fillers:
                    positional.append(self.fillers[name])
                else:
                    in_order = False  # its default applies; later ones are passed by name
                continue
            try:
                raw, conversion = given.pop(name)
                plain = parse(raw.decode("utf-8"))
                for method in conversion or ():
                    plain = converted(method, plain)
                value = decode(plain)
            except Mismatch as problem:
                raise _of_input(name, problem) from None
            except (ValueError, RecursionError):
                raise _of_input(name, Mismatch("not strict JSON")) from None
            if by_name or not in_order:
                keyword[name] = value
            else:
                positional.append(value)
        if given:
            raise Mismatch("unknown input %r" % sorted(given)[0])
        return positional, keyword

    def run(self, positional, keyword):
        value = self.main(*positional, **keyword)
        if isinstance(value, CoroutineType):
            return self._run_async(value)
        return value

    def _run_async(self, coroutine):
        import asyncio

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        return self.loop.run_until_complete(coroutine)

    def leftover_tasks(self):
        if self.loop is None:
            return False
        import asyncio

        if asyncio.all_tasks(self.loop):
            return True
        executor = getattr(self.loop, "_default_executor", None)
        return executor is not None

    def encode(self, value):
        """Return the outputs as (name as JSON text, value as JSON text)."""
        if len(self.outputs) == 1 and self.outputs[0][0] == "result":
            name, name_text, encode = self.outputs[0]
            return [(name_text, self._encode_one(name, encode, value))]
        texts = []
        if isinstance(value, dict):
            names = [name for name, _, _ in self.outputs]
            for name in value:
                if name not in names:
                    raise Mismatch(
                        "the returned %s has an unknown field %s"
                        % (describe(value), str(name)[:100])
                    )
        for name, name_text, encode in self.outputs:
            if isinstance(value, dict):
                found = value.get(name, ABSENT)
            else:
                found = getattr(value, name, ABSENT)
            if found is ABSENT:
                raise Mismatch(
                    "output %r is missing from the returned %s" % (name, describe(value))
                )
            texts.append((name_text, self._encode_one(name, encode, found)))
        return texts

    def _encode_one(self, name, encode, value):
        try:
            plain = encode(value)
            return (str(plain) if type(plain) is int else dump(plain)).encode("utf-8")
        except Mismatch as problem:
            raise Mismatch(problem.text("output %r" % name), problem.kind) from None
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise Mismatch(
                "output %r cannot be written as JSON" % name, "serialization_error"
            ) from None
