"""Shards in, weights out: model, loss, optimizer, schedule, batches, loop, phases, evaluation."""

import os

# MKL and OpenMP read these when torch loads them. A library that takes fewer threads where there are fewer cores would
# change the bits of the result with the machine.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
# Threads that wait for each other spin for a tenth of a millisecond before they sleep. If they slept at once, a step
# would take a fifth longer in float32 and two fifths in bf16. Long spinning, the default, is bad on shared
# cores.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
