"""The tables of the directory, as SQLite has them.

- `tenants`: numbers for tenants, and how many messages of each were ever filed.
- `conversations`: one row each; `first_seq` and `last_seq` are those of its first event and of its
  last activity in the stream of its partition.
- `activity`: what `last_activity` was from a sequence on, for lists that go on from a page while
  conversations move; a row where it changed.
- `messages`: the text of what can be found; `state` is empty, `streaming` or `redacted`. Its `id`
  is `tenant * 2^40 + n`, so that a tenant's messages lie together, in the order of the ledger.
- `found`: the full-text index, without a copy of the text. `facets` has the terms `c<number of the
  conversation>`, `u<digest of the user>` and `r<role>`; `terms` those of the text.
  Beginnings of one character have lists of their own: a single one of Chinese is looked up so.
- `heads`: the hash of the last event of each partition that was taken in.
"""

from __future__ import annotations

from typing import Final

from .terms import FORMAT as TERMS_FORMAT

FORMAT: Final = 2
"""Changes with every change of the tables: a file of another format is built anew."""

USER_VERSION: Final = FORMAT * 1_000 + TERMS_FORMAT
"""SQLite's `user_version` of a file that fits this release."""

TENANT_BITS: Final = 40

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS tenants (
    number INTEGER PRIMARY KEY,
    tenant_id TEXT NOT NULL UNIQUE,
    filed INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS conversations (
    number INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    conversation_id TEXT NOT NULL,
    user_id TEXT,
    title TEXT,
    status TEXT NOT NULL,
    model TEXT,
    created_at INTEGER,
    last_activity INTEGER,
    version INTEGER NOT NULL,
    message_count INTEGER NOT NULL,
    prompt_tokens TEXT NOT NULL,
    completion_tokens TEXT NOT NULL,
    hidden INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    UNIQUE (tenant, conversation_id)
);
CREATE INDEX IF NOT EXISTS by_activity
    ON conversations (tenant, hidden, last_activity, conversation_id);
CREATE INDEX IF NOT EXISTS by_user
    ON conversations (tenant, user_id, hidden, last_activity, conversation_id);
CREATE INDEX IF NOT EXISTS by_status
    ON conversations (tenant, status, last_activity, conversation_id);
CREATE INDEX IF NOT EXISTS by_seq
    ON conversations (tenant, partition, last_seq, first_seq);
CREATE TABLE IF NOT EXISTS activity (
    conversation INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (conversation, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    role TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    time INTEGER NOT NULL,
    state TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_message
    ON messages (conversation, message_id);
CREATE VIRTUAL TABLE IF NOT EXISTS found
    USING fts5(facets, terms, content = '', tokenize = 'ascii', prefix = '1');
CREATE TABLE IF NOT EXISTS heads (
    partition INTEGER PRIMARY KEY,
    hash TEXT NOT NULL
)
"""

STATEMENTS: Final = tuple(_TABLES.split(";"))
