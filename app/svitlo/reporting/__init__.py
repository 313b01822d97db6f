"""What people see: status, metrics, events."""
