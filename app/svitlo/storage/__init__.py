"""Bytes that survive a power cut: durable writes, seals, sums, locks, free space."""
