"""The contract every method lives by: method, depth, anatomy and clock."""
