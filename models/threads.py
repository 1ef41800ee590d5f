"""How torch's worker threads wait for one another on a CPU: spinning for a moment, or asleep.

A step of decoding is some two thousand short operations, and between any two of them OpenMP's threads meet. On an idle
machine it pays to spin until the next one begins: waking a sleeping thread takes longer than the operation (two cores,
135 million parameters: 5 s against 9 s for the same batch). Beside any other busy process it is the other way round,
since a spinning thread takes the core that the one it waits for needs (18 s against 9 s). The policy is read once,
when torch is loaded, so it is chosen here, before, by how busy the machine is then; what the user has set is kept. It
has no influence on results.
"""

from __future__ import annotations

import os

import psutil

BUSY = 25.0  # percent of all cores that other processes use
LOOKS, LOOK = 4, 0.05  # how often that is looked at, and for how many seconds: a machine is busy if it is every time
SPINS = "10000"

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    if all(psutil.cpu_percent(interval=LOOK) > BUSY for _ in range(LOOKS)):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = SPINS
