"""How torch's worker threads wait for one another: asleep, not spinning.

By default OpenMP's threads spin at every barrier. On a machine that does anything else at the same time a spinning
thread takes the core that the one it waits for needs: with one other busy process on two cores the engine was two to
three times slower. The policy is read once, when torch is loaded, so it is set here, before; a policy that the user
has set is kept.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
