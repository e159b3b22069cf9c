"""What holds for every test."""

import os

# The tensors of tests are tiny: more threads would only wait for each other. Set before torch is imported, and passed
# on to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
