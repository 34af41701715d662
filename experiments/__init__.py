"""Scripts, one question each: `python -m experiments.NAME --help`."""

import os

# Threads that wait for each other go to sleep instead of spinning. Where cores are shared, spinning made a
# forward pass about six times slower; on idle cores sleeping costs about a tenth. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
