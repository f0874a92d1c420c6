"""The contract, tested from outside: over NATS, against real processes."""
