"""What a person asks for: backup, restore, verify, a new run."""
