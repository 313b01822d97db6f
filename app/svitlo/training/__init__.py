"""Shards in, weights out: model, loss, optimizer, schedule, batches, loop, phases, evaluation."""

import os

# MKL and OpenMP read these when torch loads them. A library that uses fewer threads on fewer cores would make the bits
# of the result depend on the machine.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
# Threads that wait for each other spin for a tenth of a millisecond before they sleep. If they slept at once, a step
# would take a fifth longer in float32 and two fifths longer in bf16. The default spins much longer, which is bad on
# shared cores.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
