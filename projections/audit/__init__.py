"""What an auditor is shown: each event with the state it led to, and what changed between two."""
