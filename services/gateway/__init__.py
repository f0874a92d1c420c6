"""The gateway: HTTP and WebSocket for front ends that do not speak NATS (contract section 11).

A client of the NATS services like any other. It holds no state of its own, so that several may run:
what a family answers is read from the ledger, what it is told is written there before it says so.

One module per family of routes: `threads`, `conversations`, `streams`, `sessions`, `chats`. What
they stand on: `identity` (who asks), `ledger` (requests to the services), `live` (what happens in a
conversation, to many viewers), `sockets` (WebSockets), `errors`; `app` puts them together and
`serving` runs them.
"""
