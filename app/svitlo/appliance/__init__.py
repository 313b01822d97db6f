"""The life of a container: wait for data, do the phases, export, rest; or be held with a reason."""
