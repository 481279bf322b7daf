"""A run that is asked to end while it evaluates."""


class Stopped(Exception):
    """The run was asked to end while it evaluated."""
