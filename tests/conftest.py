"""Settings that every test shares."""

from hypothesis import settings

# No deadline: on a shared machine it would test the machine, not the code.
settings.register_profile("ffedge", deadline=None, max_examples=50)
settings.load_profile("ffedge")
