"""Processes killed under load, and what has to be there afterwards."""
