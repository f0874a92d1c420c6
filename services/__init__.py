"""What runs: NATS services, the command line, and what starts them."""
