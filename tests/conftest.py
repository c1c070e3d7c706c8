"""Settings of all tests."""

import signal

from hypothesis import settings

# Nothing is timed in a test, and a failure must come again.
settings.register_profile("distq", deadline=None, derandomize=True, database=None)
settings.load_profile("distq")

# Shells start what runs in the background with interrupts ignored; tests that interrupt need them.
signal.signal(signal.SIGINT, signal.default_int_handler)
