"""The tables and views, and the numbered migrations that bring an older file to them.

Times are UTC, of type TIMESTAMP. Never change a migration that was released: add one. A change that
cannot be made in place is a migration without statements: the file is then built anew from the
ledger, which loses nothing. Views hold nothing and need no migration: each opening makes them as
they are here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

TABLES: Final = ("events", "messages", "usage", "conversations", "tracking")
"""What the contract promises, in the order of this page; views are below."""

SUMS: Final = ("usage_days",)
"""What views are made of beside those: sums of rows that are only ever added."""

_DAYS_OF: Final = """
    INSERT INTO usage_days
    SELECT tenant_id, CAST(time AS DATE) AS day, count(*), sum(prompt_tokens),
        sum(completion_tokens), sum(total_tokens), sum(cost_usd), count(*) - count(cost_usd)
    FROM {} GROUP BY tenant_id, day"""

ADD_DAYS: Final = (
    _DAYS_OF.format("batch")
    + """
    ON CONFLICT (tenant_id, day) DO UPDATE SET
        calls = usage_days.calls + excluded.calls,
        prompt_tokens = usage_days.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = usage_days.completion_tokens + excluded.completion_tokens,
        total_tokens = usage_days.total_tokens + excluded.total_tokens,
        cost_usd = CASE WHEN excluded.cost_usd IS NULL THEN usage_days.cost_usd
            ELSE coalesce(usage_days.cost_usd, 0) + excluded.cost_usd END,
        calls_without_cost = usage_days.calls_without_cost + excluded.calls_without_cost"""
)
"""Adds a batch of rows of `usage` to the sums of their days."""

VIEWS: Final = {
    "daily_usage": """
        SELECT tenant_id, day, calls, prompt_tokens, completion_tokens, total_tokens, cost_usd,
            calls_without_cost
        FROM usage_days""",
    "usage_by_user": """
        SELECT tenant_id, user_id, count(*) AS calls,
            count(DISTINCT conversation_id) AS conversations,
            sum(u.prompt_tokens) AS prompt_tokens, sum(u.completion_tokens) AS completion_tokens,
            sum(u.total_tokens) AS total_tokens, sum(u.cost_usd) AS cost_usd,
            count(*) - count(u.cost_usd) AS calls_without_cost
        FROM usage u JOIN conversations c USING (tenant_id, conversation_id)
        GROUP BY tenant_id, user_id""",
    "usage_by_model": """
        SELECT tenant_id, provider, model, count(*) AS calls,
            sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
            sum(total_tokens) AS total_tokens, sum(cost_usd) AS cost_usd,
            count(*) - count(cost_usd) AS calls_without_cost
        FROM usage GROUP BY tenant_id, provider, model""",
    "active_conversations": """
        SELECT tenant_id, conversation_id, user_id, title, model, created_at, last_activity,
            message_count, sessions, total_tokens, cost_usd
        FROM conversations WHERE status = 'active'""",
    "response_times": """
        SELECT tenant_id, conversation_id, session, message_id, seq, asked_at,
            created_at AS answered_at,
            date_diff('millisecond', asked_at, created_at) / 1000 AS seconds
        FROM (
            SELECT *, lag(role) OVER said AS asked_by, lag(created_at) OVER said AS asked_at
            FROM (SELECT tenant_id, conversation_id, session, message_id, seq, role, created_at,
                    version FROM messages)
            WINDOW said AS (PARTITION BY tenant_id, conversation_id, session ORDER BY version)
        ) WHERE role = 'assistant' AND asked_by = 'user'""",
    "usage_without_cost": """
        SELECT tenant_id, provider, model, count(*) AS calls, sum(total_tokens) AS total_tokens
        FROM usage WHERE cost_usd IS NULL GROUP BY tenant_id, provider, model""",
}


class Migration(NamedTuple):
    """Brings a file from version `number - 1` to `number`; without statements by a rebuild."""

    number: int
    statements: tuple[str, ...] | None


MIGRATIONS: Final = (
    Migration(
        1,
        (
            """CREATE TABLE events (
                tenant_id VARCHAR NOT NULL, conversation_id VARCHAR NOT NULL,
                partition INTEGER NOT NULL, seq BIGINT NOT NULL, version BIGINT NOT NULL,
                type VARCHAR NOT NULL, time TIMESTAMP NOT NULL, actor VARCHAR,
                command_id VARCHAR NOT NULL, data JSON NOT NULL, hash VARCHAR NOT NULL)""",
            """CREATE TABLE messages (
                tenant_id VARCHAR NOT NULL, conversation_id VARCHAR NOT NULL,
                message_id VARCHAR NOT NULL, version BIGINT NOT NULL, seq BIGINT NOT NULL,
                role VARCHAR NOT NULL, content VARCHAR, chars BIGINT NOT NULL, name VARCHAR,
                created_at TIMESTAMP NOT NULL, session BIGINT NOT NULL, edited_at TIMESTAMP,
                redacted_at TIMESTAMP, streaming BOOLEAN NOT NULL, tool_calls JSON,
                metadata JSON NOT NULL)""",
            """CREATE TABLE usage (
                tenant_id VARCHAR NOT NULL, conversation_id VARCHAR NOT NULL, seq BIGINT NOT NULL,
                version BIGINT NOT NULL, time TIMESTAMP NOT NULL, session BIGINT NOT NULL,
                model VARCHAR, provider VARCHAR, message_id VARCHAR, prompt_tokens BIGINT NOT NULL,
                completion_tokens BIGINT NOT NULL, total_tokens BIGINT NOT NULL,
                uncached_tokens BIGINT NOT NULL, cached_tokens BIGINT, cache_write_tokens BIGINT,
                reasoning_tokens BIGINT, cost_usd DECIMAL(18,9), cost_source VARCHAR NOT NULL,
                price_version VARCHAR)""",
            """CREATE TABLE conversations (
                tenant_id VARCHAR NOT NULL, conversation_id VARCHAR NOT NULL, user_id VARCHAR,
                title VARCHAR, status VARCHAR NOT NULL, model VARCHAR, created_at TIMESTAMP,
                last_activity TIMESTAMP, version BIGINT NOT NULL, message_count BIGINT NOT NULL,
                sessions BIGINT NOT NULL, prompt_tokens HUGEINT NOT NULL,
                completion_tokens HUGEINT NOT NULL, total_tokens HUGEINT NOT NULL,
                cost_usd DECIMAL(38,9), context JSON NOT NULL, metadata JSON NOT NULL,
                PRIMARY KEY (tenant_id, conversation_id))""",
            """CREATE TABLE titles (
                tenant_id VARCHAR NOT NULL, conversation_id VARCHAR NOT NULL,
                message_id VARCHAR, PRIMARY KEY (tenant_id, conversation_id))""",
        ),
    ),
    Migration(2, None),  # replies, edits, redactions and erasing came to be understood
    Migration(
        3,
        (
            """CREATE TABLE usage_days (
                tenant_id VARCHAR NOT NULL, day DATE NOT NULL, calls BIGINT NOT NULL,
                prompt_tokens HUGEINT NOT NULL, completion_tokens HUGEINT NOT NULL,
                total_tokens HUGEINT NOT NULL, cost_usd DECIMAL(38,9),
                calls_without_cost BIGINT NOT NULL, PRIMARY KEY (tenant_id, day))""",
            _DAYS_OF.format("usage"),
        ),
    ),
)
