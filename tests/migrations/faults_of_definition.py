"""The seed's faults that a row or a statement shows: each check says whether the fault is there."""

from __future__ import annotations

from tests.migrations.faults import fault
from tests.migrations.subject import Subject


@fault("S16", "a session's token is kept raw")
def _(s: Subject) -> bool:
    return s.takes("user_sessions", user_id=s.user(), session_token="raw-token")


@fault("S17", "a password may be anything but a hash")
def _(s: Subject) -> bool:
    return s.takes("users", email="a@example.com", password_hash="secret")


@fault("S18", "an address in other letters is another user")
def _(s: Subject) -> bool:
    s.user(email="a@example.com")
    return s.takes("users", email="A@example.com")


@fault("S19", "a role may be any text")
def _(s: Subject) -> bool:
    return s.takes("users", email="a@example.com", role="bogus")


@fault("S19", "there may be many owners")
def _(s: Subject) -> bool:
    s.user(is_owner=True, role="admin")
    return s.takes("users", email="b@example.com", is_owner=True, role="admin")


@fault("S10", "a node may belong to nobody")
def _(s: Subject) -> bool:
    return s.takes("python_nodes")


@fault("S13", "a type name may be doubled where its author is nobody")
def _(s: Subject) -> bool:
    return s.does(lambda: [s.insert("custom_types"), s.insert("custom_types")])


@fault("S14", "public may be neither true nor false")
def _(s: Subject) -> bool:
    return s.takes("python_nodes", owner=s.user(), is_public=None)


@fault("S29", "a metric of a mebibyte in bytes does not fit")
def _(s: Subject) -> bool:
    return not s.takes("performance_metrics", owner=s.user(), metric_value=1048576)


@fault("S29", "a metric of a tebibyte in bytes does not fit (B76)")
def _(s: Subject) -> bool:
    return not s.takes("performance_metrics", owner=s.user(), metric_value=2**40)


@fault("S29", "a metric may be not a number")
def _(s: Subject) -> bool:
    return s.takes("performance_metrics", owner=s.user(), metric_value="NaN")


@fault("S30", "two gibibytes between nodes do not fit")
def _(s: Subject) -> bool:
    run = s.execution(s.user())
    return not s.takes("node_data_flow", workflow_execution_id=run, data_size_bytes=2**31)


@fault("S30", "twenty-five days do not fit")
def _(s: Subject) -> bool:
    kind = s.value(
        "SELECT data_type FROM information_schema.columns"
        " WHERE table_name = 'workflow_executions' AND column_name = 'duration_ms'"
    )
    return bool(kind != "bigint")


@fault("S31", "a value comes back reordered and renumbered")
def _(s: Subject) -> bool:
    text = '{"zz":1,"b":1e+16,"a":-0.0}'
    run = s.execution(s.user(), input_data=text)
    kept = s.value("SELECT input_data::text FROM workflow_executions WHERE id = %s", run)
    return bool(kept != text)


@fault("S32", "a file may have fewer than no bytes")
def _(s: Subject) -> bool:
    owner = s.user()
    return s.takes("files", owner=owner, file_size_bytes=-1)


@fault("S32", "a digest may be any text")
def _(s: Subject) -> bool:
    owner = s.user()
    return s.takes("files", owner=owner, hash_sha256="xyz")


@fault("S32", "a colour may be any text (B30)")
def _(s: Subject) -> bool:
    return s.takes("python_node_tags", owner=s.user(), name="a", color="red")


@fault("S33", "a name may be longer than a file system takes")
def _(s: Subject) -> bool:
    owner = s.user()
    return s.takes("files", owner=owner, filename="é" * 255)


@fault("S34", "a path may leave its root (B63)")
def _(s: Subject) -> bool:
    return s.takes("files", owner=s.user(), file_path="../../etc/passwd")


@fault("S34", "two files may lie at one path")
def _(s: Subject) -> bool:
    owner = s.user()
    path = s.value("SELECT file_path FROM files WHERE id = %s", s.file(owner))
    return s.takes("files", owner=owner, file_path=path)


@fault("S35", "a processor may be busier than it can be")
def _(s: Subject) -> bool:
    return s.takes("system_health", cpu_usage_percent=150)


@fault("S36", "a Python that does not exist is taken (B37)")
def _(s: Subject) -> bool:
    return s.takes("workflows", owner=s.user(), python_version="9.99")


@fault("S37", "an execution's status may be any text (I15)")
def _(s: Subject) -> bool:
    owner = s.user()
    return s.takes(
        "workflow_executions", owner=owner, workflow_id=s.workflow(owner), status="bogus"
    )


@fault("S37", "a node's status may be any text (I15)")
def _(s: Subject) -> bool:
    return s.takes("node_executions", workflow_execution_id=s.execution(s.user()), status="bogus")


@fault("S37", "a sandbox's status may be any text")
def _(s: Subject) -> bool:
    return s.takes("containers", owner=s.user(), container_id="proc:1", status="bogus")


@fault("S37", "a severity may be any text")
def _(s: Subject) -> bool:
    return s.takes("error_logs", owner=s.user(), severity="bogus")


@fault("S37", "a type's category may be any text")
def _(s: Subject) -> bool:
    return s.takes("type_definitions", name="new", category="bogus")


@fault("S37", "an access may be any text")
def _(s: Subject) -> bool:
    return s.takes("file_access_logs", access_type="bogus")


@fault("S37", "an installation's status may be any text")
def _(s: Subject) -> bool:
    container = s.container(s.user())
    return s.takes("container_dependencies", container_id=container, installation_status="bogus")


@fault("S37", "a node's type may be any text")
def _(s: Subject) -> bool:
    return s.takes(
        "node_executions", workflow_execution_id=s.execution(s.user()), node_type="bogus"
    )


@fault("S38", "an execution is stamped as started while it waits")
def _(s: Subject) -> bool:
    default = s.value(
        "SELECT column_default FROM information_schema.columns"
        " WHERE table_name = 'node_executions' AND column_name = 'started_at'"
    )
    return default is not None


@fault("S39", "a node may be there twice in one execution (I2)")
def _(s: Subject) -> bool:
    run = s.execution(s.user())
    s.node_execution(run, workflow_execution_id=run, node_id="a", execution_order=1)
    return s.takes("node_executions", workflow_execution_id=run, node_id="a", execution_order=2)


@fault("S41", "an execution may run a version that does not exist, or none")
def _(s: Subject) -> bool:
    owner = s.user()
    values = {"workflow_version": 99} if s.mended else {}
    return s.takes("workflow_executions", owner=owner, workflow_id=s.workflow(owner), **values)


@fault("S42", "retries may be fewer than none (I3)")
def _(s: Subject) -> bool:
    return s.takes("node_executions", workflow_execution_id=s.execution(s.user()), retry_count=-1)


@fault("S42", "retries may be more than allowed (I3)")
def _(s: Subject) -> bool:
    return s.takes("node_executions", workflow_execution_id=s.execution(s.user()), retry_count=4)


@fault("S43", "an execution may be over without an end (I1)")
def _(s: Subject) -> bool:
    owner = s.user()
    return s.takes(
        "workflow_executions", owner=owner, workflow_id=s.workflow(owner), status="completed"
    )


@fault("S43", "a node may end before it starts (I6)")
def _(s: Subject) -> bool:
    return s.takes(
        "node_executions",
        workflow_execution_id=s.execution(s.user()),
        status="completed",
        completed_at="yesterday",
    )


@fault("S43", "whoever writes a row makes up its duration (I6)")
def _(s: Subject) -> bool:
    run = s.execution(s.user())
    return s.takes("node_executions", workflow_execution_id=run, duration_ms=-5)


@fault("S44", "two nodes of one execution may be the first")
def _(s: Subject) -> bool:
    run = s.execution(s.user())
    s.insert("node_executions", workflow_execution_id=run, node_id="a", execution_order=1)
    return s.takes("node_executions", workflow_execution_id=run, node_id="b", execution_order=1)


@fault("S45", "what a version was may change")
def _(s: Subject) -> bool:
    owner = s.user()
    node = s.insert("python_nodes", owner=owner)
    s.insert("python_node_versions", owner=owner, node_id=node)
    return s.does(lambda: s.count("UPDATE python_node_versions SET code = 'x'"))


@fault("S45", "what a workflow's version was may change")
def _(s: Subject) -> bool:
    s.workflow(s.user())
    return s.does(lambda: s.count("UPDATE workflow_versions SET nodes = '[1]'"))


@fault("S46", "a change leaves updated_at as it was")
def _(s: Subject) -> bool:
    s.insert("python_nodes", owner=s.user(), updated_at="yesterday")
    s.db.execute("UPDATE python_nodes SET name = 'other'")
    return bool(s.value("SELECT updated_at < now() FROM python_nodes"))


@fault("S47", "a workflow's nodes may be no list (B53, I15)")
def _(s: Subject) -> bool:
    return s.takes("workflows", owner=s.user(), nodes="{}")


@fault("S47", "a workflow's connections may be a word (B53)")
def _(s: Subject) -> bool:
    return s.takes("workflows", owner=s.user(), connections='"all"')


@fault("S48", "data may flow in any form")
def _(s: Subject) -> bool:
    return s.takes("node_data_flow", workflow_execution_id=s.execution(s.user()), data_type="x")


@fault("S49", "a conversion's name may be code")
def _(s: Subject) -> bool:
    source = s.insert("type_definitions", name="one")
    target = s.insert("type_definitions", name="two")
    return s.takes(
        "type_compatibility",
        source_type_id=source,
        target_type_id=target,
        is_compatible=True,
        conversion_required=True,
        conversion_method="int()",
    )


@fault("S52", "a package may be installed twice into one sandbox")
def _(s: Subject) -> bool:
    container = s.container(s.user())
    s.insert("container_dependencies", container_id=container)
    return s.takes("container_dependencies", container_id=container)


@fault("S53", "no type is known")
def _(s: Subject) -> bool:
    return s.count("SELECT 1 FROM type_definitions WHERE is_builtin") == 0


@fault("S26", "a temporary file may stay for ever")
def _(s: Subject) -> bool:
    owner = s.user()
    return s.takes("files", owner=owner, is_temporary=True)


@fault("R8", "an execution that is over may change (I14)")
def _(s: Subject) -> bool:
    run = s.execution(s.user(), status="cancelled", completed_at="now")
    return s.does(
        lambda: s.count("UPDATE workflow_executions SET status = 'completed' WHERE id = %s", run)
    )


@fault("R8", "a node that is over may change (I14)")
def _(s: Subject) -> bool:
    s.node_execution(s.user(), status="completed", completed_at="now", output_data='{"result":1}')
    return s.does(lambda: s.count("UPDATE node_executions SET status = 'failed'"))
