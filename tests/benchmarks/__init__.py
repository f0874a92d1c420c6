"""What the ledger costs: `python -m tests.benchmarks`, explained in docs/performance.md."""
