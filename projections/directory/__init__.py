"""The directory: which conversations there are, and where something was said, in SQLite."""
