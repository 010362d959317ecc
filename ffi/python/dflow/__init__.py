"""DFlow for Python: functions of dataflow workflows over shared memory.

A handler is a plain function. Its parameters are named like the step's inputs, what it returns goes to the step's
outputs::

    def count(text: str) -> dict:
        return {"words": len(text.split())}

Inputs come without a copy where they can: ``bytes`` ports are read-only memoryviews of the memory their producer
wrote. Annotations ask for something else: ``dflow.Stream`` (read while it grows), ``dflow.Many`` (a list whose
items appear one by one), ``dflow.Lazy`` (wait later), ``bytes`` (an own copy), ``numpy.ndarray``. A function that
yields feeds a ``many`` output, each item usable downstream at once. A parameter called ``ctx`` gets the
``dflow.Context``.

Views of inputs and outputs are valid until the function returns.
"""

from ._context import Context
from ._decorate import function
from ._errors import (
    BindError,
    DecodeError,
    DflowError,
    EncodeError,
    InputFailed,
    Misuse,
    NodeGone,
    NoSuchPort,
    OutputRefused,
    OutputTooLarge,
    PutTwice,
    TooManyItems,
)
from ._inputs import Lazy, Many, Stream, StreamReader
from ._outputs import Buffer, StreamWriter

__all__ = [
    "BindError",
    "Buffer",
    "Context",
    "DecodeError",
    "DflowError",
    "EncodeError",
    "InputFailed",
    "Lazy",
    "Many",
    "Misuse",
    "NoSuchPort",
    "NodeGone",
    "OutputRefused",
    "OutputTooLarge",
    "PutTwice",
    "Stream",
    "StreamReader",
    "StreamWriter",
    "TooManyItems",
    "function",
]
