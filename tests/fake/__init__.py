"""JetStream in memory, on a clock that jumps, with everything that it may do to us."""
