"""Shards in, weights out: model, loss, optimizer, schedule, batches, loop, phases, evaluation."""

import os

# MKL and OpenMP read these when torch loads them. A library that takes fewer threads where there are fewer cores would
# change the bits of the result with the machine.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
# Threads that wait for each other sleep instead of spinning: where others want the cores too, or with more threads
# than cores, spinning took nearly half of the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
