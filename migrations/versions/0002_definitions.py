"""What: python nodes, workflows, their versions, tags, and types.

Mends S10, S12, S13, S14, S21, S32, S36, S37, S45, S46, S47, S49, S54, S55.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0002"
down_revision = "0001"

# A version row never changes; a new version is a new row.
_IMMUTABLE = """
    CREATE FUNCTION refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
    AS $$
    BEGIN
        RAISE EXCEPTION '% rows never change', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation', HINT = 'add a new version';
    END $$
"""

# Versions are counted, one after the other, and never go back.
_NEXT_VERSION = """
    CREATE FUNCTION guard_version() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
    AS $$
    BEGIN
        RAISE EXCEPTION 'version % of % does not follow %', NEW.version, TG_TABLE_NAME, OLD.version
            USING ERRCODE = 'restrict_violation';
    END $$
"""


def _guard_version(table: str) -> str:
    return f"""
    CREATE TRIGGER {table}_version BEFORE UPDATE OF version ON {table}
    FOR EACH ROW WHEN (NEW.version NOT IN (OLD.version, OLD.version + 1))
    EXECUTE FUNCTION guard_version()
    """


_NODES = (
    """
    CREATE TABLE python_nodes (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(255) NOT NULL CONSTRAINT python_nodes_name_check CHECK (btrim(name) <> ''),
        description text,
        code text NOT NULL,
        main_function varchar(255) NOT NULL,
        python_version varchar(10) NOT NULL
            CONSTRAINT python_nodes_python_version_check CHECK (python_version ~ '^3[.](9|[1-9][0-9])$'),
        dependencies jsonb
            CONSTRAINT python_nodes_dependencies_check CHECK (jsonb_typeof(dependencies) = 'array'),
        input_types jsonb NOT NULL
            CONSTRAINT python_nodes_input_types_check CHECK (jsonb_typeof(input_types) = 'array'),
        output_types jsonb NOT NULL
            CONSTRAINT python_nodes_output_types_check CHECK (jsonb_typeof(output_types) = 'array'),
        is_async boolean NOT NULL DEFAULT false,
        is_template boolean NOT NULL DEFAULT false,
        is_public boolean NOT NULL DEFAULT false,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz,
        version integer NOT NULL DEFAULT 1
            CONSTRAINT python_nodes_version_check CHECK (version >= 1)
    )
    """,
    # S54, S55: each serves a list page and keeps the seed's name and leading column.
    "CREATE INDEX idx_python_nodes_created_by ON python_nodes (created_by, created_at DESC, id DESC)",
    """
    CREATE INDEX python_nodes_tenant_id_created_at_idx
        ON python_nodes (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX idx_python_nodes_python_version ON python_nodes (python_version)",
    # A boolean column selects half the table; the few templates and public nodes are what is asked for.
    """
    CREATE INDEX idx_python_nodes_is_template ON python_nodes (created_at DESC, id DESC)
     WHERE is_template OR is_public
    """,
    """
    CREATE TRIGGER python_nodes_touch BEFORE UPDATE ON python_nodes
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    _guard_version("python_nodes"),
    """
    CREATE TABLE python_node_versions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        node_id uuid NOT NULL REFERENCES python_nodes(id) ON DELETE CASCADE,
        version integer NOT NULL
            CONSTRAINT python_node_versions_version_check CHECK (version >= 1),
        name varchar(255) NOT NULL,
        description text,
        code text NOT NULL,
        main_function varchar(255) NOT NULL,
        python_version varchar(10) NOT NULL
            CONSTRAINT python_node_versions_python_version_check
            CHECK (python_version ~ '^3[.](9|[1-9][0-9])$'),
        input_types jsonb NOT NULL
            CONSTRAINT python_node_versions_input_types_check
            CHECK (jsonb_typeof(input_types) = 'array'),
        output_types jsonb NOT NULL
            CONSTRAINT python_node_versions_output_types_check
            CHECK (jsonb_typeof(output_types) = 'array'),
        dependencies jsonb
            CONSTRAINT python_node_versions_dependencies_check
            CHECK (jsonb_typeof(dependencies) = 'array'),
        is_async boolean NOT NULL DEFAULT false,
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (node_id, version)
    )
    """,
    "CREATE INDEX python_node_versions_created_by_idx ON python_node_versions (created_by)",
    """
    CREATE TRIGGER python_node_versions_immutable BEFORE UPDATE ON python_node_versions
    FOR EACH ROW EXECUTE FUNCTION refuse_change()
    """,
    # The resolved requirements of a version; the version row itself never changes.
    """
    CREATE TABLE node_version_locks (
        node_version_id uuid PRIMARY KEY REFERENCES python_node_versions(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        state text NOT NULL DEFAULT 'pending'
            CONSTRAINT node_version_locks_state_check
            CHECK (state IN ('pending', 'locked', 'failed', 'none')),
        lock text,
        lock_digest text,
        error text,
        attempts integer NOT NULL DEFAULT 0
            CONSTRAINT node_version_locks_attempts_check CHECK (attempts >= 0),
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT node_version_locks_locked_check
            CHECK (state <> 'locked' OR (lock IS NOT NULL AND lock_digest IS NOT NULL))
    )
    """,
    "CREATE INDEX node_version_locks_tenant_id_idx ON node_version_locks (tenant_id)",
    """
    CREATE INDEX node_version_locks_pending_idx ON node_version_locks (updated_at)
     WHERE state = 'pending'
    """,
    """
    CREATE TRIGGER node_version_locks_touch BEFORE UPDATE ON node_version_locks
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
)

_WORKFLOWS = (
    """
    CREATE TABLE workflows (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(255) NOT NULL CONSTRAINT workflows_name_check CHECK (btrim(name) <> ''),
        description text,
        nodes jsonb NOT NULL
            CONSTRAINT workflows_nodes_check CHECK (jsonb_typeof(nodes) = 'array'),
        connections jsonb NOT NULL
            CONSTRAINT workflows_connections_check CHECK (jsonb_typeof(connections) = 'array'),
        settings jsonb
            CONSTRAINT workflows_settings_check CHECK (jsonb_typeof(settings) = 'object'),
        input_types jsonb NOT NULL DEFAULT '[]'
            CONSTRAINT workflows_input_types_check CHECK (jsonb_typeof(input_types) = 'array'),
        output_types jsonb NOT NULL DEFAULT '[]'
            CONSTRAINT workflows_output_types_check CHECK (jsonb_typeof(output_types) = 'array'),
        python_version varchar(10) NOT NULL
            CONSTRAINT workflows_python_version_check CHECK (python_version ~ '^3[.](9|[1-9][0-9])$'),
        is_active boolean NOT NULL DEFAULT true,
        is_template boolean NOT NULL DEFAULT false,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz,
        version integer NOT NULL DEFAULT 1
            CONSTRAINT workflows_version_check CHECK (version >= 1)
    )
    """,
    "CREATE INDEX workflows_created_by_idx ON workflows (created_by, created_at DESC, id DESC)",
    """
    CREATE INDEX workflows_tenant_id_created_at_idx
        ON workflows (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX workflows_is_template_idx ON workflows (created_at DESC, id DESC) WHERE is_template",
    """
    CREATE TRIGGER workflows_touch BEFORE UPDATE ON workflows
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    _guard_version("workflows"),
    """
    CREATE TABLE workflow_versions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        version integer NOT NULL
            CONSTRAINT workflow_versions_version_check CHECK (version >= 1),
        name varchar(255) NOT NULL,
        nodes jsonb NOT NULL
            CONSTRAINT workflow_versions_nodes_check CHECK (jsonb_typeof(nodes) = 'array'),
        connections jsonb NOT NULL
            CONSTRAINT workflow_versions_connections_check
            CHECK (jsonb_typeof(connections) = 'array'),
        settings jsonb
            CONSTRAINT workflow_versions_settings_check CHECK (jsonb_typeof(settings) = 'object'),
        input_types jsonb NOT NULL DEFAULT '[]'
            CONSTRAINT workflow_versions_input_types_check
            CHECK (jsonb_typeof(input_types) = 'array'),
        output_types jsonb NOT NULL DEFAULT '[]'
            CONSTRAINT workflow_versions_output_types_check
            CHECK (jsonb_typeof(output_types) = 'array'),
        python_version varchar(10) NOT NULL
            CONSTRAINT workflow_versions_python_version_check
            CHECK (python_version ~ '^3[.](9|[1-9][0-9])$'),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (workflow_id, version)
    )
    """,
    "CREATE INDEX workflow_versions_created_by_idx ON workflow_versions (created_by)",
    """
    CREATE TRIGGER workflow_versions_immutable BEFORE UPDATE ON workflow_versions
    FOR EACH ROW EXECUTE FUNCTION refuse_change()
    """,
)


# Tag names are unique within a tenant: a name taken elsewhere neither blocks nor tells.
def _tags(table: str, relations: str, *, subject: str, parent: str) -> tuple[str, ...]:
    return (
        f"""
        CREATE TABLE {table} (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            name varchar(100) NOT NULL CONSTRAINT {table}_name_check CHECK (btrim(name) <> ''),
            description text,
            color varchar(7)
                CONSTRAINT {table}_color_check CHECK (color ~ '^#[0-9A-Fa-f]{{6}}$'),
            tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
            created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT {table}_name_key UNIQUE (tenant_id, name)
        )
        """,
        f"CREATE INDEX {table}_created_by_idx ON {table} (created_by)",
        f"""
        CREATE TABLE {relations} (
            {subject} uuid REFERENCES {parent}(id) ON DELETE CASCADE,
            tag_id uuid REFERENCES {table}(id) ON DELETE CASCADE,
            PRIMARY KEY ({subject}, tag_id)
        )
        """,
        f"CREATE INDEX {relations}_tag_id_idx ON {relations} (tag_id)",
    )


_NODE_TAGS = _tags(
    "python_node_tags", "python_node_tag_relations", subject="node_id", parent="python_nodes"
)
_WORKFLOW_TAGS = _tags(
    "workflow_tags", "workflow_tag_relations", subject="workflow_id", parent="workflows"
)

_TYPES = (
    """
    CREATE TABLE type_definitions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(100) UNIQUE NOT NULL,
        category varchar(50) NOT NULL
            CONSTRAINT type_definitions_category_check
            CHECK (category IN ('basic', 'collection', 'special')),
        python_type varchar(100),
        description text,
        is_builtin boolean NOT NULL DEFAULT true,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    # conversion_method is a name from a closed list; nothing ever evaluates it.
    """
    CREATE TABLE type_compatibility (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        source_type_id uuid NOT NULL REFERENCES type_definitions(id) ON DELETE CASCADE,
        target_type_id uuid NOT NULL REFERENCES type_definitions(id) ON DELETE CASCADE,
        is_compatible boolean NOT NULL,
        conversion_required boolean NOT NULL DEFAULT false,
        conversion_method varchar(255)
            CONSTRAINT type_compatibility_conversion_method_check CHECK (conversion_method IN (
                'int_to_float', 'bool_to_int', 'int_to_str', 'float_to_str', 'bool_to_str',
                'int_to_decimal', 'float_to_decimal', 'decimal_to_str', 'uuid_to_str',
                'datetime_to_str', 'date_to_str', 'date_to_datetime', 'bytes_to_base64',
                'tuple_to_list', 'set_to_list', 'frozenset_to_list', 'list_to_tuple',
                'enum_to_value', 'record_to_dict', 'value_to_json',
                'str_to_int', 'str_to_float', 'str_to_bool', 'str_to_decimal', 'str_to_datetime',
                'str_to_date', 'str_to_uuid', 'float_to_int', 'list_to_set', 'json_to_value')),
        is_lossless boolean NOT NULL DEFAULT true,
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (source_type_id, target_type_id),
        CONSTRAINT type_compatibility_conversion_check
            CHECK (conversion_required = (conversion_method IS NOT NULL))
    )
    """,
    "CREATE INDEX type_compatibility_target_type_id_idx ON type_compatibility (target_type_id)",
    """
    CREATE TABLE custom_types (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(100) NOT NULL,
        definition jsonb NOT NULL
            CONSTRAINT custom_types_definition_check CHECK (jsonb_typeof(definition) = 'object'),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (name, created_by)
    )
    """,
    "CREATE INDEX custom_types_created_by_idx ON custom_types (created_by)",
    "CREATE INDEX custom_types_tenant_id_created_at_idx ON custom_types (tenant_id, created_at DESC, id DESC)",
)


def upgrade() -> None:
    run((_IMMUTABLE, _NEXT_VERSION))
    for statements in (_NODES, _WORKFLOWS, _NODE_TAGS, _WORKFLOW_TAGS, _TYPES):
        run(statements)


def downgrade() -> None:
    run(
        (
            "DROP TABLE custom_types, type_compatibility, type_definitions",
            "DROP TABLE workflow_tag_relations, workflow_tags",
            "DROP TABLE python_node_tag_relations, python_node_tags",
            "DROP TABLE workflow_versions, workflows",
            "DROP TABLE node_version_locks, python_node_versions, python_nodes",
            "DROP FUNCTION guard_version()",
            "DROP FUNCTION refuse_change()",
        )
    )
