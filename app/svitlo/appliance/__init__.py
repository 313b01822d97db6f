"""The life of a container: wait for data, run the phases, export, rest. If it cannot go on, it waits and says why."""
