"""Ways to run the servers that the ledger stands on, beside the embedded one."""
