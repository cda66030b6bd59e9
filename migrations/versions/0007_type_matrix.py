"""The rows of the type system: every builtin type, and which converts to which by what method.

Mends S49, S53. Ids are fixed, so that every installation and every test names the same rows.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0007"
down_revision = "0006"

_TYPES = """
    INSERT INTO type_definitions (id, name, category, python_type, description)
    SELECT ('00000000-0000-4000-8000-' || lpad(number::text, 12, '0'))::uuid,
           name, category, python_type, description
      FROM (VALUES
        (1, 'int', 'basic', 'int', 'whole number of any size'),
        (2, 'float', 'basic', 'float', 'finite double'),
        (3, 'bool', 'basic', 'bool', 'true or false; not an int'),
        (4, 'str', 'basic', 'str', 'text'),
        (5, 'bytes', 'basic', 'bytes', 'bytes; base64 on the wire'),
        (6, 'none', 'basic', 'None', 'no value'),
        (7, 'complex', 'basic', 'complex', 'complex number; [real, imaginary] on the wire'),
        (20, 'list', 'collection', 'list', 'ordered items of one type'),
        (21, 'set', 'collection', 'set', 'distinct items; an array on the wire'),
        (22, 'frozenset', 'collection', 'frozenset', 'distinct items; an array on the wire'),
        (23, 'tuple', 'collection', 'tuple', 'fixed or variadic items; an array on the wire'),
        (24, 'dict', 'collection', 'dict', 'keys and values; an object on the wire'),
        (40, 'any', 'special', 'typing.Any', 'any JSON value, unchecked'),
        (41, 'decimal', 'special', 'decimal.Decimal', 'exact decimal; a string on the wire'),
        (42, 'datetime', 'special', 'datetime.datetime', 'ISO 8601 on the wire'),
        (43, 'date', 'special', 'datetime.date', 'ISO 8601 on the wire'),
        (44, 'time', 'special', 'datetime.time', 'ISO 8601 on the wire'),
        (45, 'timedelta', 'special', 'datetime.timedelta', 'seconds on the wire'),
        (46, 'uuid', 'special', 'uuid.UUID', 'a string on the wire'),
        (47, 'file', 'special', 'qflow.File', 'a stored file by reference'),
        (48, 'union', 'special', 'typing.Union', 'one of several types'),
        (49, 'literal', 'special', 'typing.Literal', 'one of several values'),
        (50, 'record', 'special', 'dataclass', 'named fields: TypedDict, dataclass, NamedTuple, model'),
        (51, 'enum', 'special', 'enum.Enum', 'one of its members, by value on the wire'),
        (52, 'named', 'special', NULL, 'opaque, known by name; not carried between nodes')
      ) AS t(number, name, category, python_type, description)
"""

# A type is itself, and anything is any; nothing leaves any unchecked.
_SAME = """
    INSERT INTO type_compatibility (id, source_type_id, target_type_id, is_compatible)
    SELECT md5('qflow:' || s.name || '>' || t.name)::uuid, s.id, t.id, true
      FROM type_definitions s JOIN type_definitions t ON t.id = s.id OR t.name = 'any'
     WHERE NOT (t.name = 'any' AND s.name = 'named')
"""

# Lossless ones are inserted by themselves; the others only where an edge names them.
_CONVERSIONS = """
    INSERT INTO type_compatibility
        (id, source_type_id, target_type_id, is_compatible, conversion_required, conversion_method,
         is_lossless)
    SELECT md5('qflow:' || s.name || '>' || t.name)::uuid, s.id, t.id, true, true, c.method, c.lossless
      FROM (VALUES
        ('int', 'float', 'int_to_float', true),
        ('bool', 'int', 'bool_to_int', true),
        ('int', 'str', 'int_to_str', true),
        ('float', 'str', 'float_to_str', true),
        ('bool', 'str', 'bool_to_str', true),
        ('int', 'decimal', 'int_to_decimal', true),
        ('float', 'decimal', 'float_to_decimal', true),
        ('decimal', 'str', 'decimal_to_str', true),
        ('uuid', 'str', 'uuid_to_str', true),
        ('datetime', 'str', 'datetime_to_str', true),
        ('date', 'str', 'date_to_str', true),
        ('date', 'datetime', 'date_to_datetime', true),
        ('bytes', 'str', 'bytes_to_base64', true),
        ('tuple', 'list', 'tuple_to_list', true),
        ('set', 'list', 'set_to_list', true),
        ('frozenset', 'list', 'frozenset_to_list', true),
        ('list', 'tuple', 'list_to_tuple', true),
        ('enum', 'str', 'enum_to_value', true),
        ('enum', 'int', 'enum_to_value', true),
        ('record', 'dict', 'record_to_dict', true),
        ('list', 'str', 'value_to_json', true),
        ('tuple', 'str', 'value_to_json', true),
        ('dict', 'str', 'value_to_json', true),
        ('record', 'str', 'value_to_json', true),
        ('str', 'int', 'str_to_int', false),
        ('str', 'float', 'str_to_float', false),
        ('str', 'bool', 'str_to_bool', false),
        ('str', 'decimal', 'str_to_decimal', false),
        ('str', 'datetime', 'str_to_datetime', false),
        ('str', 'date', 'str_to_date', false),
        ('str', 'uuid', 'str_to_uuid', false),
        ('float', 'int', 'float_to_int', false),
        ('list', 'set', 'list_to_set', false),
        ('str', 'list', 'json_to_value', false),
        ('str', 'dict', 'json_to_value', false),
        ('str', 'record', 'json_to_value', false)
      ) AS c(source, target, method, lossless)
      JOIN type_definitions s ON s.name = c.source
      JOIN type_definitions t ON t.name = c.target
"""


def upgrade() -> None:
    run((_TYPES, _SAME, _CONVERSIONS))


# Rows that somebody added later go with the types they name.
_FORGET = "DELETE FROM type_definitions WHERE id::text LIKE '00000000-0000-4000-8000-%'"


def downgrade() -> None:
    run((_FORGET,))
