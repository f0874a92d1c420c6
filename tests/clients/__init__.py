"""Clients that nobody here wrote: the AI SDK's, and a browser (`make test-clients`)."""
