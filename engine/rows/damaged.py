"""Damage has a module of its own, in which nothing heavy is imported: launch.py asks for it before torch is there."""


class Damaged(Exception):
    """Something on the disk is not what was written there; the message names it in one line."""
