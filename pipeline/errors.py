"""Errors a user can cause. The message says what was expected, what came and from where, and what to do; the command line
prints it without a traceback. Bugs stay plain exceptions.
"""


class UserError(Exception):
    """Something the user can put right. Takes one message, so that it survives crossing processes."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or does not fit another."""


class DataError(UserError):
    """Input data is missing, malformed, or not what the manifest promises."""


class StorageError(UserError):
    """A file cannot be read or written where it lies: the disk is full or read-only, or something else stands in its place."""


class TrainingError(UserError):
    """Training cannot go on (a non-finite loss, for example)."""


class Unhealthy(UserError):
    """A run shows what the doctor looks for."""
