"""Evidence that a record is what it was: Merkle trees (RFC 6962), signed notes, proofs, bundles.

Knows entries (bytes) and nothing of where they come from.
"""
