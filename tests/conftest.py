"""What holds for every test."""

import os
import signal

from hypothesis import settings

# The tensors of tests are tiny: more threads would only wait for each other. Set before torch is imported, and passed
# on to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background of a script, a process ignores Ctrl-C and hands that on; the tests of Ctrl-C need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a rare tie of two plans must not fail somebody else's change.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
