"""The gateway over a real ledger: what clients send, and what they get."""
