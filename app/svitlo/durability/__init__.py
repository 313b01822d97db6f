"""What survives a power cut: atomic files, checkpoints, interruption."""
