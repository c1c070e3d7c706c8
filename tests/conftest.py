"""Settings of all tests."""

from hypothesis import settings

# Nothing is timed in a test, and a failure must come again.
settings.register_profile("distq", deadline=None, derandomize=True, database=None)
settings.load_profile("distq")
