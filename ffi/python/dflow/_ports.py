"""The vocabulary of ports, as the C library numbers it."""

from typing import NamedTuple

# How the bytes of a port are to be read (``type`` in the workflow file).
BYTES, TEXT, JSON = 0, 1, 2

# What an input is in one invocation.
NULL, ONE, LIST = 0, 1, 2

# The shape of an output.
PLAIN, STREAM, MANY = 0, 1, 2


class InputPort(NamedTuple):
    """An input of the step, the same in each invocation of one shape."""

    name: str
    type: int


class OutputPort(NamedTuple):
    """An output of the step, the same in each invocation of one shape."""

    name: str
    type: int
    kind: int
    #: Declared limit of one object in bytes, 0 for none.
    bytes_max: int = 0
