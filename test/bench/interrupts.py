"""Ctrl-C, SIGTERM and the time limit of a turn as exceptions, raised only where that leaves no mess.

A command that starts daemons must not be abandoned half-way: nobody would know what runs then.
"""

import contextlib
import signal


class TimeLimit(BaseException):
    """A turn took too long. No `except Exception` of a workload catches it."""


_held = 0
_waiting = None  # the exception class to raise when nothing is held any more


def install():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _arrived)


def ignore():
    """From now on nothing is raised: what is left to do is short and must be done."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _arrived(number, _frame):
    global _waiting
    problem = TimeLimit if number == signal.SIGALRM else KeyboardInterrupt
    if _held == 0:
        raise problem
    _waiting = _waiting or problem


@contextlib.contextmanager
def hold():
    """Exceptions wait until the outermost of these blocks is left. Main thread only."""
    global _held, _waiting
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if _held == 0 and _waiting:
            problem, _waiting = _waiting, None
            raise problem
