"""Errors meant for people: each says what is wrong, where, and what to do about it."""


class UserError(Exception):
    """Something the user can mend: wrong configuration, data or method. The exit code is 2."""


class MethodError(UserError):
    """A method broke its contract: the message names its class, the tensor and the shapes."""
