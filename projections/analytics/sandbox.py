"""Safe SQL: what may be asked of the tables, and by whom, whatever the text says.

Four walls, each of which would do for most of what is tried:

1. The datastore is locked down (`view.DuckDBDatastore`): no file, network, extension or setting.
2. A transaction that cannot write.
3. One statement, a SELECT by DuckDB's own parser, whose syntax tree names nothing but our tables
   and views, without a catalog or a schema in front, and no function that reads files, settings,
   the catalogue or statistics, runs text as SQL, or waits.
4. With a tenant, our names are those of temporary views of the query's own connection, which hold
   that tenant's rows only. A barrier keeps DuckDB from moving any part of the query behind it, so
   that not even an error message can tell of another tenant's row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import duckdb
from pydantic_core import from_json

from .schema import SUMS, TABLES, VIEWS

SQL_CHARS_MAX: Final = 100_000

NAMES: Final = frozenset({*TABLES, *VIEWS})

_TABLE_FUNCTIONS: Final = frozenset(
    {"generate_series", "json_each", "json_tree", "range", "repeat", "unnest"}
)

_TABLE_REFERENCES: Final = frozenset(
    {"BASE_TABLE", "EMPTY", "EXPRESSION_LIST", "JOIN", "PIVOT", "SUBQUERY", "TABLE_FUNCTION"}
)
_FORBIDDEN_REFERENCES: Final = frozenset(
    {"BOUND_TABLE_REF", "COLUMN_DATA", "DELIM_GET", "SHOW_REF", "INVALID"}
)

# Reviewed with DuckDB 1.5.5, function by function; a test notices when there are others.
_FORBIDDEN_FUNCTIONS: Final = re.compile(
    r"""
    __internal_.* | pg_.* | duckdb_.* | pragma_.* | has_.*_privilege | inet_.*
    | read_.* | sniff_.* | glob | .*_scan | parquet_.* | which_secret | query | query_table
    | quack_.* | whoami | arrow_scan.* | pandas_scan | python_map_function | test_.*
    | checkpoint | force_checkpoint
    | stats | getenv | getvariable | current_setting | in_search_path | write_log
    | parse_duckdb_log_message | json_execute_serialized_sql | json_(de)?serialize_(sql|plan)
    | current_(catalog|connection_id|database|query|query_id|role|schema|schemas|user)
    | current_transaction_id | txid_current | session_user | user | version
    | nextval | currval | sleep_ms | setseed | finalize | combine | vector_type
    | col_description | obj_description | shobj_description | format_type | format_pg_type
    | map_to_pg_oid | get_block_size | create_sort_key | add_parquet_key
    """,
    re.VERBOSE | re.IGNORECASE,
)

_BARRIER: Final = f"LIMIT {2**63 - 1}"
"""DuckDB moves no filter and no expression through a LIMIT."""


class SQLRefused(Exception):
    """The statement is not one that may be run; the message is DuckDB's own where it has one."""


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> frozenset[str]:
    """Returns which of our names the statement uses; raises SQLRefused unless it may be run."""
    if len(sql) > SQL_CHARS_MAX:
        raise SQLRefused(f"the statement has {len(sql)} characters, at most {SQL_CHARS_MAX}")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise SQLRefused(str(error)) from error
    if len(statements) != 1:
        raise SQLRefused(
            f"one statement at a time, these are {len(statements)}"
            if statements
            else "there is no statement"
        )
    type = statements[0].type
    if type != duckdb.StatementType.SELECT:
        raise SQLRefused(f"only SELECT may be run here, this is {type.name}")
    named, defined = _names(_tree(connection, sql))
    # A name defined in one part of the query is looked up in the catalogue in another.
    hidden = (named & defined) - NAMES
    if hidden and (taken := hidden & _taken(connection)):
        raise SQLRefused(f"{min(taken)!r} is a name of DuckDB's own: take another")
    return named & NAMES


def _tree(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    try:
        found = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchone()
        assert found is not None
        tree: dict[str, Any] = from_json(found[0])
    except (duckdb.Error, ValueError) as error:
        raise SQLRefused(f"the statement cannot be read: {error}") from error
    if tree.get("error"):
        raise SQLRefused(str(tree.get("error_message", "the statement cannot be read")))
    return tree


def _names(tree: dict[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """The tables that the tree names, and the names that it defines itself, in lower case.

    Raises SQLRefused for a tree with anything in it that is not allowed.
    """
    named: set[str] = set()
    defined: set[str] = set()
    for node in _nodes(tree):
        _check_node(node)
        if node.get("type") == "BASE_TABLE":
            named.add(str(node["table_name"]).lower())
        if isinstance(ctes := node.get("cte_map"), dict):
            defined.update(str(entry["key"]).lower() for entry in ctes.get("map", ()))
    unknown = named - NAMES - defined
    if unknown:
        raise SQLRefused(
            f"there is no table {min(unknown)!r}: the tables are {', '.join(TABLES)}, "
            f"the views {', '.join(VIEWS)}"
        )
    return frozenset(named), frozenset(defined)


def _nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object in the tree, without recursion."""
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _check_node(node: dict[str, Any]) -> None:
    kind = str(node.get("type"))
    if kind in _FORBIDDEN_REFERENCES:
        raise SQLRefused(
            "DESCRIBE, SHOW and SUMMARIZE are not for here; the columns are those of a SELECT"
        )
    is_function = "function_name" in node
    for place in ("catalog", "catalog_name", "schema", "schema_name"):
        given = node.get(place)
        # A function is judged by its name; what stands in front may be an argument (a.upper()).
        if given and not (is_function and place == "schema"):
            raise SQLRefused(f"name tables and functions alone, without {given!r} in front")
    if is_function:
        _check_function(str(node["function_name"]))
    if kind == "TABLE_FUNCTION":
        name = str(node["function"].get("function_name", node["function"].get("type")))
        if name.lower() not in _TABLE_FUNCTIONS:
            raise SQLRefused(f"the table function {name!r} is not for here")
    if "query_location" in node and "sample" in node and "alias" in node:
        _check_reference(kind)


def _check_reference(kind: str) -> None:
    if kind not in _TABLE_REFERENCES:
        raise SQLRefused(f"a FROM clause of the kind {kind} is not for here")


def _check_function(name: str) -> None:
    if _FORBIDDEN_FUNCTIONS.fullmatch(name):
        raise SQLRefused(f"the function {name!r} is not for here")


def _taken(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Every name of a table or view that DuckDB itself would find."""
    found = connection.execute(
        "SELECT view_name FROM duckdb_views() UNION SELECT table_name FROM duckdb_tables()"
    ).fetchall()
    return frozenset(name.lower() for (name,) in found)


def scope(connection: duckdb.DuckDBPyConnection, tenant_id: str) -> None:
    """Makes our names, on this connection, those of views that hold this tenant's rows only."""
    found = connection.execute("SELECT current_database()").fetchone()
    assert found is not None
    catalog = _quoted(found[0], '"')
    for table in (*TABLES, *SUMS):
        which = "" if table == "tracking" else f"WHERE tenant_id = {_quoted(tenant_id, chr(39))}"
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {table} AS "  # noqa: S608 (quoted; a view takes no parameters)
            f"SELECT * FROM {catalog}.main.{table} {which} {_BARRIER}"
        )
    for view, query in VIEWS.items():
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {query}")


def _quoted(text: str, mark: str) -> str:
    return mark + text.replace(mark, mark * 2) + mark


_SHOWN_TO_CLIENTS: Final = _TABLE_FUNCTIONS | {
    "duckdb_columns",
    "duckdb_constraints",
    "duckdb_databases",
    "duckdb_functions",
    "duckdb_keywords",
    "duckdb_schemas",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "pragma_show",
    "pragma_table_info",
    "pragma_version",
}
"""What a DuckDB client that has attached the tables may ask beside them, to find them."""

_SIDE_EFFECTS: Final = ("getenv", "nextval", "pg_sleep", "sleep_ms", "write_log")


def readers_only(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    """Returns the statement that makes macro `name`, an authorization callback of quack.

    It lets a text pass when DuckDB's own parser finds SELECT statements and nothing else in it, and
    when none of its functions is one of those that exist now and do more than show our tables.
    """
    found = connection.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
        "WHERE function_type IN ('table', 'table_macro', 'pragma')"
    ).fetchall()
    refused = sorted({function for (function,) in found} - _SHOWN_TO_CLIENTS | {*_SIDE_EFFECTS})
    functions = "|".join(re.escape(function) for function in refused)
    pattern = f'(?i)"function_name":"({functions})"'
    tree = "json_serialize_sql(query::VARCHAR)::VARCHAR"
    return (
        f"CREATE OR REPLACE MACRO {name}(session, query) AS coalesce("
        f"json_extract_string({tree}, '$.error') = 'false' "
        f"AND NOT regexp_matches({tree}, {_quoted(pattern, chr(39))}), false)"
    )
