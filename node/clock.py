"""The wall clock, in one place, so that tests can hold it and every record agrees on the unit."""

import time


def now_s() -> float:
    """Seconds since the epoch."""
    return time.time()
