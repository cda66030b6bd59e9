"""Read subscripted annotations: `list[int]`, `Literal[1]`, `Pair[int, str]`."""

from __future__ import annotations

import ast

from .report import Refused, needs_brackets, not_a_type
from .values import plain, storable
from .vocabulary import APPROXIMATED, GENERIC, NEVER_EMPTY, OPAQUE_PARTS, TUPLES, WRAPPERS


class Argument:
    """The argument for a type parameter, with the names in scope where it was written."""

    def __init__(self, node, variables, opened):
        self.node = node
        self.variables = variables
        self.open = opened


def read_subscript(types, node, depth):
    """Return the form of an annotation with brackets."""
    name = types.scope.dotted(node.value)
    if name is None:
        raise not_a_type(node)
    inner, arguments = _arguments(node, name)
    if name == "typing.Optional":
        _count(name, arguments, 1, node)
        return types.union([arguments[0], ast.Constant(None)], depth)
    if name == "typing.Union":
        return types.union(arguments, depth)
    carried = _carried(types, name, arguments)
    if carried is not None:
        return {"t": carried}
    if name == "typing.Annotated" or name in WRAPPERS:
        return types.read(arguments[0], depth)
    if name == "typing.Literal":
        return _literal(types, arguments, depth)
    if name in TUPLES:
        return _tuple(types, inner, arguments, depth)
    kind = types.known(name, node) if name not in APPROXIMATED else None
    if name in APPROXIMATED:
        _count(name, arguments, 2 if APPROXIMATED[name] == "dict" else 1, node)
        return types.approximated(name, [types.read(each, depth + 1) for each in arguments], node)
    if kind is not None and kind["t"] in ("list", "set", "frozenset"):
        _count(name, arguments, 1, node)
        return {"t": kind["t"], "item": types.read(arguments[0], depth + 1)}
    if kind is not None and kind["t"] == "dict":
        _count(name, arguments, 2, node)
        key = types.read(arguments[0], depth + 1)
        return {"t": "dict", "key": key, "value": types.read(arguments[1], depth + 1)}
    if kind is not None:
        raise Refused(
            "TYPE_NOT_UNDERSTOOD",
            "%s takes no types in brackets" % name,
            "leave the brackets out",
            node,
        )
    filled = _filled(types, node, arguments, depth)
    return types.name(node.value, depth) if filled is None else filled


def _filled(types, node, arguments, depth):
    """Return the form of a generic alias or class (`type Pair[T] = …`) with arguments, or None."""
    name, scope = getattr(node.value, "id", ""), types.scope
    parameters = _parameters(scope, name)
    if name in types.variables or len(parameters) != len(arguments) or not parameters:
        return None
    given = [Argument(each, types.variables, list(types.open)) for each in arguments]

    def read():
        if name in scope.classes:
            return types.classes.read(scope.classes[name], name, node, depth)
        return types.alias(name, scope.aliases[name], node, depth)

    return types.opened(name, node, read, dict(zip(parameters, given)))


def _parameters(scope, name):
    """Return the type parameters of an alias or a class; empty if any of them is variadic."""
    definition = scope.classes.get(name)
    opened = scope.parameters.get(name) or getattr(definition, "type_params", ())
    if opened:
        plain = all(type(each).__name__ == "TypeVar" for each in opened)
        return [each.name for each in opened] if plain else []
    for base in definition.bases if definition is not None else ():
        if isinstance(base, ast.Subscript) and scope.dotted(base.value) in GENERIC:
            named = base.slice.elts if isinstance(base.slice, ast.Tuple) else [base.slice]
            plain = all(isinstance(each, ast.Name) for each in named)
            return [each.id for each in named] if plain else []
    return []


def _carried(types, name, arguments):
    """Return the type of values carried as files, whatever their arguments, or None."""
    if name == "typing.IO" and arguments and types.scope.dotted(arguments[0]) == "builtins.bytes":
        return "file"
    if name == "typing.Annotated" and any(
        isinstance(each, ast.Constant) and each.value == "pickle" for each in arguments[1:]
    ):
        return "pickle"
    return OPAQUE_PARTS.get(name)


def _arguments(node, name):
    inner = node.slice
    if type(inner).__name__ == "Index":  # the syntax tree before Python 3.9
        inner = inner.value
    arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if not arguments and name in NEVER_EMPTY:
        raise needs_brackets(name, node)
    return inner, arguments


def _count(name, arguments, wanted, node):
    if len(arguments) != wanted:
        short = name.rpartition(".")[2]
        raise Refused(
            "TYPE_NOT_UNDERSTOOD",
            "%s takes %d in brackets, not %d" % (short, wanted, len(arguments)),
            "write it so: %s[%s]" % (short, ", ".join(["int"] * wanted)),
            node,
        )


def _tuple(types, inner, arguments, depth):
    if isinstance(inner, ast.Tuple) and not arguments:
        return {"t": "tuple", "items": []}
    if any(map(types.is_unpacked, arguments)):
        return {"t": "tuple", "item": {"t": "any"}}  # the number of items is not known here
    last = arguments[-1]
    if len(arguments) == 2 and isinstance(last, ast.Constant) and last.value is Ellipsis:
        return {"t": "tuple", "item": types.read(arguments[0], depth + 1)}
    return {"t": "tuple", "items": [types.read(each, depth + 1) for each in arguments]}


def _literal(types, arguments, depth):
    types.count_parts(len(arguments))
    values, others = [], []
    for each in arguments:
        if isinstance(each, ast.Subscript) and types.scope.dotted(each.value) == "typing.Literal":
            others.append(types.read(each, depth + 1))
            continue
        if isinstance(each, ast.Attribute):
            others.append(_literal_member(types, each, depth))
            continue
        value = plain(each)
        if isinstance(value, bytes):
            others.append({"t": "bytes"})
        elif value is None or isinstance(value, (str, bool, int)):
            values.append(storable(value, each))
        else:
            raise Refused(
                "TYPE_NOT_UNDERSTOOD",
                "a literal is text, an integer, True, False, None or an enum's member",
                "name the type of the value instead",
                each,
            )
    unique = {(type(value), value): value for value in values}
    forms = [{"t": "literal", "values": list(unique.values())}] if values else []
    merged = []
    for form in forms + others:
        if form not in merged:
            merged.append(form)
    return merged[0] if len(merged) == 1 else {"t": "union", "any_of": merged}


def _literal_member(types, node, depth):
    form = types.read(node.value, depth + 1)
    if form["t"] != "enum" or node.attr not in form["members"]:
        raise Refused(
            "TYPE_NOT_UNDERSTOOD",
            "this is not a member of an enum",
            "name a member that an enum of this source defines",
            node,
        )
    base = "int" if form["base"] == "flag" else form["base"]  # a single value, no combinations
    return dict(form, base=base, members={node.attr: form["members"][node.attr]})
