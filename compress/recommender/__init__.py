"""The search for a chain: fastest within a loss, most accurate within a latency."""
