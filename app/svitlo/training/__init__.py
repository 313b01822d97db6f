"""Shards in, weights out: model, loss, optimizer, schedule, batches, loop, phases, evaluation."""

import os

# MKL and OpenMP read these when torch loads them. A library that takes fewer threads where there are fewer cores would
# change the bits of the result with the machine.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
# Threads that wait for each other spin for a tenth of a millisecond before they sleep. With sleep at once a step takes a
# fifth longer in float32, two fifths in bf16; long spinning, the default, doubles it where others want the cores too.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
