"""Find the main function, and read its parameters and return type."""

from __future__ import annotations

import ast
import keyword

from .report import ERROR, WARNING, Refused
from .values import UNKNOWN, plain, wire
from .vocabulary import HARMLESS_DECORATORS, NAME

PARAMETERS_MAX = 1_000
DOCSTRING_CHARS_MAX = 10_000
_EXAMPLE = "define one: def run(x: int) -> int: …"


def find_main(scope, wanted):
    """Return the function that a run calls: the named one, or the only public one."""
    if wanted:
        return _named_main(scope, wanted)
    public = []
    for name in scope.order:
        if name in scope.functions and not name.startswith("_") and name not in public:
            public.append(name)
    if not public:
        raise Refused(
            "MAIN_FUNCTION_MISSING",
            "the source defines no public function at its top level",
            _EXAMPLE,
        )
    if len(public) > 1:
        raise Refused(
            "MAIN_FUNCTION_AMBIGUOUS",
            "the source defines %d public functions" % len(public),
            "set main_function to one of: %s" % ", ".join(public[:20]),
            scope.functions[public[1]],
        )
    return scope.functions[public[0]]


def _named_main(scope, wanted):
    dunder = wanted.startswith("__") and wanted.endswith("__")
    if not NAME.match(wanted) or keyword.iskeyword(wanted) or dunder:
        raise Refused(
            "MAIN_FUNCTION_INVALID",
            "main_function must be the plain name of a function",
            "no dots, keywords or double underscores",
        )
    if wanted in scope.functions:
        return scope.functions[wanted]
    if scope.has(wanted):
        found = scope.classes.get(wanted) or scope.aliases.get(wanted)
        kind = "a class" if wanted in scope.classes else "not defined by def"
        if isinstance(found, ast.Lambda):
            kind = "a lambda"
        raise Refused(
            "MAIN_FUNCTION_NOT_A_FUNCTION",
            "%s is %s" % (wanted, kind),
            "name a function that is defined with def or async def at the top level",
            found,
        )
    names = [name for name in scope.order if name in scope.functions]
    raise Refused(
        "MAIN_FUNCTION_MISSING",
        "the source defines no function %s" % wanted[:200],
        "it defines: %s" % ", ".join(names[:20]) if names else _EXAMPLE,
    )


def read_function(function, types, report):
    """Return signature, defaults, docstring and outputs of the main function."""
    _check_body(function, report)
    types.variables = {
        each.name: each for each in getattr(function, "type_params", ()) if hasattr(each, "name")
    }
    _check_decorators(function, types.scope, report)
    given = function.returns or function  # where findings about the return type are reported
    return {
        "name": function.name,
        "is_async": isinstance(function, ast.AsyncFunctionDef),
        "docstring": (ast.get_docstring(function) or "")[:DOCSTRING_CHARS_MAX],
        "line": given.lineno,
        "column": report.column(given.lineno, given.col_offset),
        "parameters": _parameters(function, types, report),
        "returns": _returns(function, types, report),
    }


def _check_decorators(function, scope, report):
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if scope.dotted(target) not in HARMLESS_DECORATORS:
            report.add(
                WARNING,
                "DECORATED",
                "a decorator may change what the function takes and gives",
                "the signature below it is believed",
                decorator,
            )


def _check_body(function, report):
    """Report a generator as an error, since its result could not be carried."""
    stack = list(function.body)
    while stack:
        here = stack.pop()
        if isinstance(here, (ast.Yield, ast.YieldFrom)):
            report.add(
                ERROR,
                "MAIN_FUNCTION_GENERATOR",
                "the main function yields, so it gives a generator",
                "return a list",
                here,
            )
            return
        if not isinstance(here, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            stack.extend(ast.iter_child_nodes(here))


def _parameters(function, types, report):
    arguments = function.args
    for variadic, stars in ((arguments.vararg, "*"), (arguments.kwarg, "**")):
        if variadic is not None:
            report.add(
                ERROR,
                "PARAMETER_VARIADIC",
                "%s%s takes any number of arguments; an edge feeds one named input"
                % (stars, variadic.arg),
                "take a list or a dict instead",
                variadic,
            )
    positional = list(getattr(arguments, "posonlyargs", ())) + arguments.args
    missing = len(positional) - len(arguments.defaults)
    defaults = [None] * missing + arguments.defaults
    found = [
        _parameter(each, default, "positional", types, report)
        for each, default in zip(positional, defaults)
    ]
    found += [
        _parameter(each, default, "keyword", types, report)
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults)
    ]
    if len(found) > PARAMETERS_MAX:
        raise Refused(
            "TOO_MANY_PARAMETERS",
            "more than %d parameters" % PARAMETERS_MAX,
            "take a record",
            function,
        )
    return found


def _parameter(argument, default, kind, types, report):
    if argument.annotation is None:
        report.add(
            WARNING,
            "ANNOTATION_MISSING",
            "the parameter %s has no annotation; it takes anything" % argument.arg,
            "annotate it, so that edges into it can be proven",
            argument,
        )
    form = _annotation(argument.annotation, types, report)
    text = None
    if default is not None:
        value = plain(default)
        if value is None and argument.annotation is not None:
            form = _optional(form)  # `x: int = None` means int | None
        if value is not UNKNOWN:
            text = wire(value)
        elif isinstance(default, ast.Attribute):
            text = _enum_default(default, form, types)
    return {
        "name": argument.arg,
        "kind": kind,
        "type": form,
        "required": default is None,
        "default_json": text,
        "line": argument.lineno,
        "column": report.column(argument.lineno, argument.col_offset),
    }


def _annotation(node, types, report):
    if node is None:
        return {"t": "any"}
    try:
        return types.of(node)
    except Refused as refused:
        place = refused.node if hasattr(refused.node, "lineno") else node
        report.add(ERROR, refused.code, refused.message, refused.hint, place)
        return {"t": "any"}


def _optional(form):
    members = form["any_of"] if form["t"] == "union" else [form]
    if form["t"] in ("any", "none") or {"t": "none"} in members:
        return form
    return {"t": "union", "any_of": members + [{"t": "none"}]}


def _enum_default(node, form, types):
    options = form["any_of"] if form["t"] == "union" else [form]
    for option in options:
        if (
            option["t"] == "enum"
            and node.attr in option["members"]
            and types.scope.dotted(node.value) == option["name"]
        ):
            return wire(option["members"][node.attr])
    return None


def _returns(function, types, report):
    node = function.returns
    if node is None:
        report.add(
            WARNING,
            "ANNOTATION_MISSING",
            "the function has no return annotation; it may give anything",
            "annotate it, so that edges from it can be proven",
            function,
        )
    return _annotation(node, types, report)
