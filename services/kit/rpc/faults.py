"""What is wrong with a message: finds no more faults than are reported, and stops there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, Final, NamedTuple

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.rpc import times

FAULTS_MAX: Final = 100
# Over all lists and maps of a message; 200,000 elements in 4 MiB have 21 bytes each.
ELEMENTS_MAX: Final = 200_000
# A part with at most this many elements is validated in full: each has a few faults at most.
_SEARCHED_WHOLE_MAX: Final = 250


def check_elements(message: Message) -> None:
    """Refuse a message with more elements than a rule or the kit allows, before checking any."""
    _count(message, "")


def find_rule_faults(message: Message) -> list[FieldViolation]:
    """Find violations of the rules that the contract states as `buf.validate` options."""
    violations = protovalidate.collect_violations(message, fail_fast=True)
    if not violations:
        return []
    # A fault may be found twice: in the whole message, and in the element that has it.
    return [*dict.fromkeys(islice(_breaches(message, "", violations), FAULTS_MAX))]


def find_content_faults(
    message: Message, *, has_nul: bool, keeps_rules: bool = False
) -> list[FieldViolation]:
    """Find faults that rules do not state: NUL in texts, and numbers that name no enum value.

    Also invalid timestamps and durations, which each language would read differently. If the
    message `keeps_rules`, enums with a `defined_only` rule need no further check.
    """
    if not has_nul and (keeps_rules and _rules_tell_all(message.DESCRIPTOR)):
        return []
    if not has_nul and _is_known(message):
        return []
    return [*islice(_content_faults(message, "", texts=has_nul), FAULTS_MAX)]


def are_lasting(descriptor: Descriptor) -> bool:
    """Return whether the rules always judge the same bytes alike: none depends on the time."""
    return not any(_may_ask_the_time(field) for field in _within(descriptor)) and not (
        descriptor.GetOptions().HasExtension(validate_pb2.message)
    )


def _may_ask_the_time(field: FieldDescriptor) -> bool:
    inner = field.message_type
    if inner is not None:
        if inner.full_name == "google.protobuf.Timestamp":
            return True
        if inner.GetOptions().HasExtension(validate_pb2.message):
            return True
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return bool(rules.cel or rules.cel_expression or rules.HasField("timestamp"))


def refusal(faults: list[FieldViolation]) -> InvalidArgument:
    """Return the error for a message with these faults."""
    first = faults[0]
    text = f"{first.field}: {first.description}" if first.field else first.description
    if len(faults) > 1:
        text = f"{text} (and {len(faults) - 1} more)"
    return InvalidArgument("INVALID_REQUEST", text, fields=faults)


def _count(message: Message, path: str) -> int:
    total = 0
    for field, name, most, nested in _lists(message.DESCRIPTOR):
        if not most and not message.HasField(name):
            continue
        value = getattr(message, name)
        if most:
            length = len(value)
            if length > most:
                raise _too_many(f"{path}{name}", most)
            total += length
        if nested:
            for place, _, item in _items(field, value, f"{path}{name}"):
                if isinstance(item, Message):
                    total += _count(item, f"{place}.")
                if total > ELEMENTS_MAX:
                    break
        if total > ELEMENTS_MAX:
            raise _too_many(f"{path}{name}", ELEMENTS_MAX, " with what stands before it")
    return total


def _too_many(field: str, most: int, whole: str = "") -> InvalidArgument:
    description = f"must have at most {most} elements{whole}"
    return refusal([FieldViolation(field, description, "TOO_MANY_ELEMENTS")])


class _ListField(NamedTuple):
    """A field that is a list, or whose message may contain lists."""

    field: FieldDescriptor
    name: str
    most: int  # maximum length; 0 for a field that is not a list
    nested: bool  # whether its message may contain lists


@cache
def _lists(descriptor: Descriptor) -> tuple[_ListField, ...]:
    """Return the fields of a message that contain elements to count, in order of their numbers."""
    lists = []
    for field in sorted(descriptor.fields, key=lambda each: each.number):
        inner = _searched(field)
        nested = inner is not None and any(each.is_repeated for each in _within(inner))
        if field.is_repeated or nested:
            most = _elements_max(field) if field.is_repeated else 0
            lists.append(_ListField(field, field.name, most, nested))
    return tuple(lists)


def _elements_max(field: FieldDescriptor) -> int:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if rules.repeated.HasField("max_items"):
        return min(int(rules.repeated.max_items), ELEMENTS_MAX)
    if rules.map.HasField("max_pairs"):
        return min(int(rules.map.max_pairs), ELEMENTS_MAX)
    return ELEMENTS_MAX


@cache
def _searched(field: FieldDescriptor) -> Descriptor | None:
    """Return the message type of a field that is validated with the whole message, else None.

    The items of a list whose rule ignores them are validated one by one by the use case, so that
    an invalid item does not fail the others: see `validate.check_item`.
    """
    rules = field.GetOptions().Extensions[validate_pb2.field]
    by_item = field.is_repeated and rules.repeated.items.ignore == validate_pb2.IGNORE_ALWAYS
    return None if by_item else field.message_type


@cache
def _within(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Return the fields of a message and of every message that it may contain."""
    seen = {descriptor.full_name: descriptor}
    waiting = [descriptor]
    while waiting:
        for field in waiting.pop().fields:
            inner = _searched(field)
            if inner is not None and inner.full_name not in seen:
                seen[inner.full_name] = inner
                waiting.append(inner)
    return tuple(field for each in seen.values() for field in each.fields)


def _breaches(
    message: Message, path: str, violations: Sequence[protovalidate.Violation]
) -> Iterator[FieldViolation]:
    """Yield the given violations, or all of them if the message is small enough to search.

    The library builds every violation before it returns any, which costs a hundred times as much
    as finding an element valid. So a large message is searched element by element, lazily.
    """
    searched_whole = _count(message, "") <= _SEARCHED_WHOLE_MAX
    if searched_whole:
        violations = protovalidate.collect_violations(message)
    for violation in violations:
        place = _path(violation.proto.field, path)
        yield FieldViolation(place, violation.proto.message, _reason(violation.proto.rule_id))
    if not searched_whole:
        for field, value in message.ListFields():
            if _searched(field) is None:
                continue
            for place, _, item in _items(field, value, f"{path}{field.name}"):
                if isinstance(item, Message):
                    first = protovalidate.collect_violations(item, fail_fast=True)
                    if first:
                        yield from _breaches(item, f"{place}.", first)


def _path(path: Any, prefix: str) -> str:
    text = ""
    for element in path.elements if path is not None else ():  # a message rule has no path
        text += f".{element.field_name}" if text else element.field_name
        subscript = element.subscript
        if subscript is not None:
            text += f"[{subscript.value!r}]".replace("'", '"')
    return f"{prefix}{text}" if text else prefix.removesuffix(".")


def _reason(rule_id: str) -> str:
    return rule_id.upper().replace(".", "_").replace("-", "_")


def _content_faults(message: Message, path: str, *, texts: bool) -> Iterator[FieldViolation]:
    for field, value in message.ListFields():
        if not (_is_looked_at(field) or (texts and _holds_text(field))):
            continue  # only numbers, of which there may be ten thousand
        for place, kind, item in _items(field, value, f"{path}{field.name}"):
            if isinstance(item, Timestamp | Duration):
                wrong = times.fault(item)
                if wrong is not None:
                    yield FieldViolation(place, *wrong)
            elif isinstance(item, Message):
                yield from _content_faults(item, f"{place}.", texts=texts)
            elif isinstance(item, str):
                if "\0" in item:
                    yield FieldViolation(place, "must not contain NUL characters", "NUL")
            elif kind.enum_type is not None and item not in kind.enum_type.values_by_number:
                description = f"{item} is no value of {kind.enum_type.name}"
                yield FieldViolation(place, description, "ENUM_UNKNOWN")


@cache
def _rules_tell_all(descriptor: Descriptor) -> bool:
    """Return whether every enum in a message has a `defined_only` rule, and no field is a time.

    A time always needs a check: the contract has no rule for a valid one.
    """
    fields = _within(descriptor)
    knows_enums = all(_is_defined_only(each) for each in fields if each.enum_type is not None)
    return knows_enums and not any(map(_is_time, fields))


def _is_time(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name in times.NAMES


def _is_defined_only(field: FieldDescriptor) -> bool:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if rules.ignore == validate_pb2.IGNORE_ALWAYS:
        return False
    return bool((rules.repeated.items if field.is_repeated else rules).enum.defined_only)


@cache
def _is_looked_at(field: FieldDescriptor) -> bool:
    """Return whether a field is an enum or a time, or its message may contain one."""
    searched = _searched(field)
    inner = () if searched is None else _within(searched)
    return any(each.enum_type is not None or _is_time(each) for each in (field, *inner))


@cache
def _holds_text(field: FieldDescriptor) -> bool:
    searched = _searched(field)
    inner = () if searched is None else _within(searched)
    return any(each.type == FieldDescriptor.TYPE_STRING for each in (field, *inner))


class _KnownField(NamedTuple):
    """A field that is an enum or a time, or whose message may contain one."""

    name: str
    numbers: frozenset[int]  # empty for a message
    knows: Callable[[Any], bool]  # checks a message and all in it
    is_repeated: bool
    is_map: bool


@cache
def _known_fields(descriptor: Descriptor) -> tuple[_KnownField, ...]:
    fields = []
    for field in filter(_is_looked_at, descriptor.fields):
        enum, inner = field.enum_type, field.message_type
        numbers = frozenset(enum.values_by_number) if enum is not None else frozenset[int]()
        knows = times.is_right if _is_time(field) else _is_known
        is_map = inner is not None and inner.GetOptions().map_entry
        fields.append(_KnownField(field.name, numbers, knows, field.is_repeated, is_map))
    return tuple(fields)


def _is_known(message: Message) -> bool:
    """Return whether every enum value and every time in a message is valid.

    Cheap because it builds no paths; a message with maps returns False, so that the full search
    decides.
    """
    for field in _known_fields(message.DESCRIPTOR):
        value = getattr(message, field.name)
        if field.is_map:
            known = not value
        elif field.numbers:
            known = field.numbers.issuperset(value) if field.is_repeated else value in field.numbers
        elif field.is_repeated:
            known = all(map(field.knows, value))
        else:
            known = not message.HasField(field.name) or field.knows(value)
        if not known:
            return False
    return True


def _items(
    field: FieldDescriptor, value: Any, path: str
) -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Yield each single value of a field with its path and the field that defines its type."""
    inner = field.message_type
    if not field.is_repeated:
        yield path, field, value
    elif inner is not None and inner.GetOptions().map_entry:
        key_field, value_field = inner.fields
        for key in value:
            place = f"{path}[{json.dumps(key)}]"
            yield place, key_field, key
            yield place, value_field, value[key]
    else:
        for index, item in enumerate(value):
            yield f"{path}[{index}]", field, item
