"""Errors meant for people: each says what is wrong, where, and what to do about it."""


class UserError(Exception):
    """Something the user can mend: wrong configuration, data or method. The exit code is 2."""


class Stopped(Exception):
    """A person stopped a run; the message says how to go on. The exit code is 130."""


class Failed(Exception):
    """A run was started and came to no result, or not back; the message says why. The exit code is
    1."""


class MethodError(UserError):
    """A method broke its contract: the message names its class, the tensor and the shapes."""
