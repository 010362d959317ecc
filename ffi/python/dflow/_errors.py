"""Exceptions the package raises. The class name is what ``retry.on: [error:NAME]`` matches."""


class DflowError(Exception):
    """Base of everything this package raises."""


class BindError(DflowError, TypeError):
    """The handler's parameters and the step's inputs do not fit together."""


class DecodeError(DflowError, ValueError):
    """The bytes of an input are not what its declared type says."""


class EncodeError(DflowError, TypeError):
    """A value cannot be written to the port it was given to."""


class NoSuchPort(DflowError, LookupError):
    """The step has no port of that name."""


class PutTwice(DflowError):
    """A plain or stream port was put a second time."""


class OutputTooLarge(DflowError):
    """An output exceeds its declared or reserved size."""


class TooManyItems(DflowError):
    """A ``many`` port exceeds its ``max_items``."""


class OutputRefused(DflowError):
    """The store can never give the memory an output asks for."""


class InputFailed(DflowError):
    """An input will never be complete, or its first part is void: what produced it has failed. Just return."""


class Misuse(DflowError, RuntimeError):
    """A call that makes no sense now, such as using an input after the function has returned."""


class NodeGone(DflowError, ConnectionError):
    """The node this process works for has ended."""


def nearest(name, names):
    """``(did you mean 'x'?)`` with a leading space if some name of ``names`` is close to ``name``, else ``''``."""
    import difflib  # Only errors pay for this import.

    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
