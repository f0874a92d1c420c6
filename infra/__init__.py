"""NATS, processes and settings. Knows nothing of conversations."""
