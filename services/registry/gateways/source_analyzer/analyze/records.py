"""Read classes as records: TypedDict, NamedTuple, dataclasses and pydantic models."""

from __future__ import annotations

import ast

from .enums import read_enum, read_enum_call
from .report import Refused, name_too_long
from .vocabulary import ENUM_BASES, NAME


class Classes:
    """Reads classes, and calls that create types."""

    def __init__(self, types):
        self.types = types
        self.scope = types.scope

    def read(self, definition, name, node, depth):
        """Return the form of a class: a record or an enum, otherwise opaque."""
        bases = self._bases(definition)
        if bases & set(ENUM_BASES):
            return read_enum(self.types, self._lineage(definition), name, bases, node)
        kind = self._record_kind(definition, bases)
        if kind is None:
            return self.types.opaque(name, node)
        if len(name) > 255:
            raise name_too_long(node)
        lineage = self._lineage(definition)
        if kind == "dataclass":
            lineage = [each for each in lineage if self._is_dataclass(each)]
            if any(map(self._has_init_var, lineage)):
                # The constructor takes it, but the object does not have it as a field.
                return self.types.opaque(
                    name, node, "make its InitVar a field, or pass plain values"
                )
        fields = {}
        for each in lineage:
            for field in self._fields(each, kind, depth):
                fields[field["name"]] = field
        return {"t": "record", "kind": kind, "name": name, "fields": list(fields.values())}

    def read_call(self, name, call, node, depth):
        """Read a call that creates a type: NewType, TypeVar, an alias, a record or an enum."""
        maker = self.scope.dotted(call.func)
        arguments = call.args
        if maker in ("typing.NewType", "typing.TypeAliasType") and len(arguments) == 2:
            return self.types.read(arguments[1], depth)
        if maker == "typing.TypeVar":
            bound = [each.value for each in call.keywords if each.arg == "bound"]
            if bound:
                return self.types.read(bound[0], depth)
            return self.types.union(arguments[1:], depth) if len(arguments) > 2 else {"t": "any"}
        if maker == "typing.TypedDict" and len(arguments) == 2:
            return self._typed_dict_call(name, call, depth)
        if maker == "typing.NamedTuple" and len(arguments) == 2:
            pairs = arguments[1].elts if isinstance(arguments[1], (ast.List, ast.Tuple)) else []
            fields = [
                self._field(pair.elts[0].value, pair.elts[1], True, depth)
                for pair in pairs
                if isinstance(pair, (ast.Tuple, ast.List))
                and len(pair.elts) == 2
                and isinstance(pair.elts[0], ast.Constant)
            ]
            return {"t": "record", "kind": "namedtuple", "name": name, "fields": fields}
        if maker in ENUM_BASES and len(arguments) == 2:
            return read_enum_call(self.types, name, maker, call, node)
        return self.types.opaque(name, node)

    def _typed_dict_call(self, name, call, depth):
        shape = call.args[1]
        total = not any(
            each.arg == "total" and getattr(each.value, "value", True) is False
            for each in call.keywords
        )
        fields = []
        if isinstance(shape, ast.Dict):
            for key, value in zip(shape.keys, shape.values):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    fields.append(self._typed_dict_field(key.value, value, total, depth))
        return {"t": "record", "kind": "typeddict", "name": name, "fields": fields}

    def _base_nodes(self, definition):
        for base in definition.bases:
            yield base.value if isinstance(base, ast.Subscript) else base

    def _bases(self, definition):
        """Return the dotted names of all bases, including those of bases in the same module."""
        found, stack, seen = set(), [definition], set()
        while stack:
            for base in self._base_nodes(stack.pop()):
                name = self.scope.dotted(base)
                if name is None or name in seen:
                    continue
                seen.add(name)
                found.add(name)
                if name in self.scope.classes:
                    stack.append(self.scope.classes[name])
        return found

    def _lineage(self, definition):
        """Return the class after its bases of the same module, so that its own fields win."""
        ordered, stack, seen = [], [definition], set()
        while stack and len(ordered) < 100:
            here = stack.pop()
            if id(here) in seen:
                continue
            seen.add(id(here))
            ordered.append(here)
            for base in self._base_nodes(here):
                name = self.scope.dotted(base)
                if name in self.scope.classes:
                    stack.append(self.scope.classes[name])
        return ordered[::-1]

    def _record_kind(self, definition, bases):
        if "typing.TypedDict" in bases:
            return "typeddict"
        if "typing.NamedTuple" in bases:
            return "namedtuple"
        if bases & {"pydantic.BaseModel", "pydantic.main.BaseModel", "pydantic.v1.BaseModel"}:
            return "pydantic"
        return "dataclass" if self._is_dataclass(definition) else None

    def _is_dataclass(self, definition):
        for decorator in definition.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            if self.scope.dotted(target) in (
                "dataclasses.dataclass",
                "pydantic.dataclasses.dataclass",
            ):
                return True
        return False

    def _has_init_var(self, definition):
        return any(
            isinstance(each, ast.AnnAssign)
            and self._outermost(each.annotation) == "dataclasses.InitVar"
            for each in definition.body
        )

    def _outermost(self, annotation):
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = self.types.forward(annotation)
        return self.scope.dotted(
            annotation.value if isinstance(annotation, ast.Subscript) else annotation
        )

    def _fields(self, definition, kind, depth):
        total = not any(
            each.arg == "total" and getattr(each.value, "value", True) is False
            for each in definition.keywords
        )
        for statement in definition.body:
            if not isinstance(statement, ast.AnnAssign):
                continue
            if not isinstance(statement.target, ast.Name):
                continue
            name, annotation = statement.target.id, statement.annotation
            if self._outermost(annotation) in ("typing.ClassVar", "dataclasses.KW_ONLY"):
                continue
            if kind == "pydantic" and (name.startswith("_") or name == "model_config"):
                continue
            if kind == "typeddict":
                yield self._typed_dict_field(name, annotation, total, depth)
                continue
            has_default = statement.value is not None
            if isinstance(statement.value, ast.Call):
                made = self._field_call(statement.value)
                if made is None:
                    continue
                has_default = made
            yield self._field(name, annotation, not has_default, depth)

    def _field_call(self, call):
        """Return whether `field(…)` or `Field(…)` has a default; None if it is no init argument."""
        name = self.scope.dotted(call.func) or ""
        if name not in ("dataclasses.field", "pydantic.Field", "pydantic.fields.Field"):
            return True
        given = {each.arg: each.value for each in call.keywords}
        if getattr(given.get("init"), "value", True) is False:
            return None
        if call.args and name != "dataclasses.field":
            first = call.args[0]
            return not (isinstance(first, ast.Constant) and first.value is Ellipsis)
        default = given.get("default")
        if isinstance(default, ast.Constant) and default.value is Ellipsis:
            return False
        return "default" in given or "default_factory" in given

    def _field(self, name, annotation, required, depth):
        if not isinstance(name, str) or not NAME.match(name) or len(name) > 255:
            raise Refused(
                "TYPE_NOT_UNDERSTOOD",
                "a field's name is no identifier",
                "name fields as Python names variables",
                annotation,
            )
        return {"name": name, "type": self.types.read(annotation, depth + 1), "required": required}

    def _typed_dict_field(self, name, annotation, total, depth):
        required = total
        node = annotation
        while isinstance(node, ast.Subscript):
            outer = self.scope.dotted(node.value)
            if outer == "typing.Required":
                required = True
            elif outer == "typing.NotRequired":
                required = False
            elif outer not in ("typing.ReadOnly", "typing.Annotated"):
                break
            node = node.slice
            if type(node).__name__ == "Index":
                node = node.value
            if isinstance(node, ast.Tuple) and node.elts:
                node = node.elts[0]
        return self._field(name, annotation, required, depth)
