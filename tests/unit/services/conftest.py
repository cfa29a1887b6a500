"""Settings of the tests that draw their inputs: a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=50)
settings.load_profile("unit")
