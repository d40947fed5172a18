"""What was measured, as raw facts, and every figure that is derived from them."""
