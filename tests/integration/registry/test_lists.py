from __future__ import annotations

from typing import Any

import grpc
import psycopg
import pytest
from qflow.registry.v1 import node_service_pb2 as nodes_rpc
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflows_rpc

from services.registry.storage import lists
from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, refused
from tests.support.cost import counted

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def _node(sql: psycopg.Connection, owner: factories.User, name: str, **columns: Any) -> str:
    """A node with such columns, written as the owner of the schema."""
    made = factories.node(sql, owner, python=columns.pop("python_version", "3.11"))
    for column, value in {"name": name, **columns}.items():
        sql.execute(
            f"UPDATE python_nodes SET {column} = %s WHERE id = %s".encode(), (value, made.id)
        )
    return str(made.id)


def _workflow(sql: psycopg.Connection, owner: factories.User, name: str, **columns: Any) -> str:
    node = factories.node(sql, owner)
    made = factories.workflow(
        sql,
        owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("y", "a")],
        node_settings={"a": {"timeout_ms": None, "memory_bytes": None}},
    )
    for column, value in {"name": name, **columns}.items():
        sql.execute(f"UPDATE workflows SET {column} = %s WHERE id = %s".encode(), (value, made))
    return str(made)


async def _names(client: Client, text: str = "", order_by: str = "name") -> list[str]:
    request = nodes_rpc.ListNodesRequest(filter=text, order_by=order_by)
    return [each.name for each in (await client.nodes.ListNodes(request)).nodes]


async def _workflow_names(client: Client, text: str = "", order_by: str = "name") -> list[str]:
    request = workflows_rpc.ListWorkflowsRequest(filter=text, order_by=order_by)
    return [each.name for each in (await client.workflows.ListWorkflows(request)).workflows]


async def test_nodes_are_found_by_each_field(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    _node(sql, user, "load orders", description="Reads the SHOP", python_version="3.12")
    _node(sql, user, "load stock", is_template=True)
    _node(sql, user, "save", is_public=True, description="writes orders")
    await change_rows(sql, "ALTER TABLE python_nodes DISABLE TRIGGER python_nodes_touch")
    await change_rows(
        sql,
        "UPDATE python_nodes SET created_at = '2020-01-01', updated_at = '2021-01-01'"
        " WHERE name = 'save'",
    )
    for text, expected in {
        "": ["load orders", "load stock", "save"],
        "load": ["load orders", "load stock"],
        "LOAD orders": ["load orders"],
        "orders": ["load orders", "save"],
        "shop": ["load orders"],
        "load -stock": ["load orders"],
        "stock OR save": ["load stock", "save"],
        "ad": ["load orders", "load stock"],
        "k": ["load stock"],
        "K ad": ["load stock"],
        "ps": [],
        'name = "save"': ["save"],
        'name = "Save"': [],
        'name != "save"': ["load orders", "load stock"],
        "name : STO": ["load stock"],
        "description : orders": ["save"],
        "template = true": ["load stock"],
        "template != true AND public = false": ["load orders"],
        "public = true": ["save"],
        "python_version = 3.12": ["load orders"],
        f"owner = {user.id}": ["load orders", "load stock", "save"],
        f"owner != {user.id}": [],
        "create_time < 2020-01-02": ["save"],
        "create_time >= 2020-01-02 AND load": ["load orders", "load stock"],
        "update_time = 2021-01-01T01:00:00+01:00": ["save"],
        "(public = true OR template = true) AND NOT writes": ["load stock"],
    }.items():
        assert expected == await _names(client, text), text


async def test_workflows_are_found_by_each_field(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    _workflow(sql, user, "daily report", description="for the board")
    _workflow(sql, user, "weekly report", is_active=False, is_template=True)
    for text, expected in {
        "": ["daily report", "weekly report"],
        "REPORT -board": ["weekly report"],
        "name : aily": ["daily report"],
        "active = true": ["daily report"],
        "active != true": ["weekly report"],
        "template = true report": ["weekly report"],
        "python_version = 3.11": ["daily report", "weekly report"],
        f"owner = {user.id} create_time > 2020-01-01": ["daily report", "weekly report"],
    }.items():
        assert expected == await _workflow_names(client, text), text
    said = await refused(
        client.workflows.ListWorkflows(workflows_rpc.ListWorkflowsRequest(filter="public = true"))
    )
    assert (INVALID, "FILTER_FIELD_UNKNOWN") == (said.code, said.reason)


@pytest.mark.parametrize(
    "name",
    [
        *("100% of it", "a_b", "back\\slash", "x'); DROP TABLE users; --", "(((", "[a-z]+$"),
        *("Grüße", "日本語のノード", "*", '"quoted"', "\N{PILE OF POO} tidy"),
    ],
)
async def test_every_character_stands_for_itself(
    client: Client, sql: psycopg.Connection, user: factories.User, name: str
) -> None:
    """B27, B28."""
    _node(sql, user, name)
    _node(sql, user, "1000 of it ab axb backslash")
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    for text in (f'"{quoted}"', f'name : "{quoted}"', f'name = "{quoted}"'):
        assert [name] == await _names(client, text), text
    assert ["1000 of it ab axb backslash"] == await _names(client, f'-name:"{quoted}"')


@pytest.mark.parametrize(
    "text", ["(a+)+$ " * 60, '"' + "(a|a)*" * 300 + '"', "%" * 2000, "_%" * 900, "^(.*)*x" * 60]
)
async def test_a_bomb_for_pattern_matching_is_plain_text(
    client: Client, sql: psycopg.Connection, user: factories.User, text: str
) -> None:
    """B79: refused, or found literally, within 50 ms of the registry's time."""
    for _ in range(20):
        _node(sql, user, "a" * 250, description="a" * 10_000)
    request = nodes_rpc.ListNodesRequest(filter=text)
    with counted() as cost:  # the registry runs in this process
        try:
            assert [] == [*(await client.nodes.ListNodes(request)).nodes]
        except grpc.aio.AioRpcError as error:
            assert INVALID == error.code()  # noqa: PT017  # either is right
    assert cost.ms < 50


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"order_by": "name; select"}, "ORDER_BY_INVALID", "order_by"),
        ({"order_by": "tenant_id"}, "ORDER_BY_INVALID", "order_by"),
        ({"filter": "tenant_id = 1"}, "FILTER_FIELD_UNKNOWN", "filter"),
        ({"filter": "name ~ x)"}, "FILTER_SYNTAX", "filter"),
    ],
)
async def test_what_is_not_on_the_list_is_refused_with_its_field(
    client: Client, fields: dict[str, str], reason: str, field: str
) -> None:
    """B78, B79."""
    for said in (
        await refused(client.nodes.ListNodes(nodes_rpc.ListNodesRequest(**fields))),  # type: ignore[arg-type]
        await refused(
            client.workflows.ListWorkflows(workflows_rpc.ListWorkflowsRequest(**fields))  # type: ignore[arg-type]
        ),
    ):
        assert (INVALID, reason) == (said.code, said.reason)
        assert [(field, reason)] == said.violations


async def test_a_filter_too_long_is_refused_before_it_is_read(client: Client) -> None:
    """B79."""
    request = nodes_rpc.ListNodesRequest(filter="a" * 2001)
    assert INVALID == (await refused(client.nodes.ListNodes(request))).code


async def _walk(client: Client, size: int, **asked: str) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = await client.nodes.ListNodes(
            nodes_rpc.ListNodesRequest(page_size=size, page_token=token, **asked)  # type: ignore[arg-type]
        )
        found += [each.id for each in page.nodes]
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("order_by", ["name", "create_time", "update_time"])
async def test_pages_of_every_order_follow_each_other_also_where_it_is_equal(
    client: Client, sql: psycopg.Connection, user: factories.User, order_by: str
) -> None:
    """B62g: own rows and those shown to everybody are one list; the id decides between equals."""
    other = factories.user(sql)
    for at in range(10):
        _node(sql, user, f"n{at // 3}")
        _node(sql, other, f"n{at // 4}", is_public=at % 2 == 0, is_template=at % 3 == 0)
    await change_rows(sql, "ALTER TABLE python_nodes DISABLE TRIGGER python_nodes_touch")
    await change_rows(
        sql,
        "UPDATE python_nodes SET created_at = date_trunc('day', now()) - version * interval '1 h',"
        " updated_at = timestamptz '2020-01-01' + ascii(right(name, 1)) * interval '1 day'",
    )
    column = {"create_time": "created_at", "update_time": "updated_at"}.get(order_by, "name")
    for text, condition in {
        "": "true",
        "n1 OR n2": "name IN ('n1', 'n2')",
        "name : n": "true",
        "public != true": "NOT is_public",
    }.items():
        for direction in ("asc", "desc"):
            rows = sql.execute(
                f"SELECT id FROM python_nodes WHERE (tenant_id = %s OR is_public OR is_template)"
                f" AND {condition} ORDER BY {column} {direction}, id {direction}".encode(),
                (user.id,),
            ).fetchall()
            asked = {"filter": text, "order_by": f"{order_by} {direction}"}
            assert [str(row[0]) for row in rows] == await _walk(client, 3, **asked), asked
            assert len(rows) > 6


async def test_a_page_goes_on_with_its_own_filter_order_and_view_alone(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    """B62h."""
    for name in "abc":
        _node(sql, user, name)
    asked = {"filter": "name != x", "order_by": "name"}
    first = await client.nodes.ListNodes(nodes_rpc.ListNodesRequest(page_size=1, **asked))  # type: ignore[arg-type]
    token = first.next_page_token
    for other in ({"filter": "name != y"}, {"order_by": "create_time"}, {"order_by": "name desc"}):
        request = nodes_rpc.ListNodesRequest(page_token=token, **{**asked, **other})  # type: ignore[arg-type]
        assert INVALID == (await refused(client.nodes.ListNodes(request))).code, other
    on = nodes_rpc.ListNodesRequest(page_token=token, **asked)  # type: ignore[arg-type]
    assert ["b", "c"] == [each.name for each in (await client.nodes.ListNodes(on)).nodes]


async def test_a_page_goes_on_after_the_longest_name(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    names = ["\N{PILE OF POO}" * 254 + last for last in "ab"]
    for name in names:
        _node(sql, user, name)
    made = {each.name: each.id for each in (await client.nodes.ListNodes(_by_name())).nodes}
    assert [made[name] for name in names] == await _walk(client, size=1, order_by="name")


def _by_name() -> nodes_rpc.ListNodesRequest:
    return nodes_rpc.ListNodesRequest(order_by="name")


async def test_a_search_finds_ones_own_and_what_is_shown_to_everybody(
    registry: Registry, sql: psycopg.Connection, user: factories.User
) -> None:
    """X14: the index of a search holds everybody's rows; the answer does not."""
    other = factories.user(sql)
    _node(sql, user, "secret mine")
    _node(sql, other, "secret theirs")
    _node(sql, other, "secret public", is_public=True)
    _node(sql, other, "secret template", is_template=True)
    client = registry.client(user.token)
    for text in ("secret", "name:secret", "", f"owner = {other.id} OR secret"):
        expected = ["secret mine", "secret public", "secret template"]
        assert expected == await _names(client, text), text
    _workflow(sql, user, "secret mine")
    _workflow(sql, other, "secret theirs")
    _workflow(sql, other, "secret template", is_template=True)
    for text in ("secret", "name:secret", "", f"owner = {other.id} OR secret"):
        expected = ["secret mine", "secret template"]
        assert expected == await _workflow_names(client, text), text


@pytest.mark.parametrize("order_by", ["", "create_time", "name", "update_time desc"])
@pytest.mark.parametrize("walked", [1, 4, 500], ids=["one", "some", "all"])
async def test_a_search_gives_the_same_pages_however_many_of_the_first_rows_it_looks_at(
    registry: Registry,
    sql: psycopg.Connection,
    user: factories.User,
    monkeypatch: pytest.MonkeyPatch,
    *,
    order_by: str,
    walked: int,
) -> None:
    """What is common, rare, or common among others' nodes: no row is left out or out of turn.

    Nor where the first candidates do not fill the page, or the word has a letter or two.
    """
    monkeypatch.setattr(lists, "WALKED_FIRST", walked)
    monkeypatch.setattr(lists, "WALKED_MAX", 4 * walked)
    other = factories.user(sql)
    for at in range(8):
        _node(sql, user, f"often {at % 3} {'seldom' if at == 6 else ''}")
        _node(sql, other, f"often {at % 3}", is_public=at % 2 == 0)
        _node(sql, other, f"seldom {at % 3}", is_template=True)
    client = registry.client(user.token)
    everything = await _pages(client, "", order_by, size=100)
    assert 8 + 4 + 8 == len(everything)
    words = {"often": 12, "seldom": 9, "often seldom": 1, "never": 0}
    words |= {"ft": 12, "m": 9, "z": 0, "dl": 0, "ft om": 1, "often m": 1}
    for word, count in words.items():
        wanted = [each for each in everything if all(part in each[1] for part in word.split())]
        assert count == len(wanted)
        for size in (1, 3, 100):
            assert wanted == await _pages(client, word, order_by, size=size), (word, size)


async def _pages(client: Client, text: str, order_by: str, *, size: int) -> list[tuple[str, str]]:
    found, token = [], ""
    while True:
        page = await client.nodes.ListNodes(
            nodes_rpc.ListNodesRequest(
                filter=text, order_by=order_by, page_size=size, page_token=token
            )
        )
        found += [(each.id, each.name) for each in page.nodes]
        token = page.next_page_token
        if not token:
            return found


async def test_what_is_found_too_often_for_the_index_is_found_by_walking(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    """More candidates than are taken, with some that are asked for among the last."""
    made = factories.node(sql, user)
    sql.execute(
        "INSERT INTO python_nodes (name, code, main_function, python_version, input_types,"
        " output_types, created_by, tenant_id)"
        " SELECT 'load ' || n, code, main_function, python_version, input_types, output_types,"
        " created_by, tenant_id FROM python_nodes, generate_series(1, 2500) AS n WHERE id = %s",
        (made.id,),
    )
    sql.execute(
        "INSERT INTO python_node_versions (node_id, version, name, code, main_function,"
        " python_version, input_types, output_types, created_by)"
        " SELECT id, 1, name, code, main_function, python_version, input_types, output_types,"
        " created_by FROM python_nodes WHERE id <> %s",
        (made.id,),
    )
    assert 2500 == len(await _walk(client, size=700, filter="load"))
    assert ["load 999", "load 1999"] == await _names(client, "load name:999", "name desc")
    assert 86 == len(await _walk(client, 700, filter="load AND name:99 OR name:98"))


async def test_a_change_of_name_is_found_at_once(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    _node(sql, user, "before the change")
    assert ["before the change"] == await _names(client, "before")
    await change_rows(sql, "UPDATE python_nodes SET name = 'after it'")
    assert [] == await _names(client, "before")
    assert ["after it"] == await _names(client, "after")
    await change_rows(sql, "UPDATE python_nodes SET deleted_at = now()")
    assert [] == await _names(client, "after")


async def test_graphs_of_a_full_list_come_whole(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    _workflow(sql, user, "w")
    request = workflows_rpc.ListWorkflowsRequest(view=workflow_pb2.WORKFLOW_VIEW_FULL)
    (found,) = (await client.workflows.ListWorkflows(request)).workflows
    assert ["a"] == [each.id for each in found.definition.nodes]
    (basic,) = (
        await client.workflows.ListWorkflows(workflows_rpc.ListWorkflowsRequest())
    ).workflows
    assert [] == [*basic.definition.nodes]
