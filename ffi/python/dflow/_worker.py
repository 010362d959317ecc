"""The loop of a function process: take an invocation, call the handler, say how it ended."""

import gc
import importlib
import os
import sys
import traceback

from ._errors import DflowError

# What of an error travels to the node, in bytes: a message on the link has a limit, and the interesting parts are
# how the message begins and where the traceback ends.
MESSAGE_BYTES_MAX = 2 << 10
TRACEBACK_BYTES_MAX = 5 << 10

PLANS_MAX = 64

# Where frames lie that tell a function's author nothing.
_OURS = (os.path.dirname(__file__) + os.sep, importlib.__file__, "<frozen ")


def _clip(text, limit, keep_end=False):
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data
    if keep_end:
        return b"[...]\n" + data[-limit:].decode("utf-8", "ignore").encode()
    return data[:limit].decode("utf-8", "ignore").encode() + b" [...]"


def describe(error):
    """``(name, message)`` of an exception as bytes: the class name, then the text with the user's traceback."""
    name = type(error).__name__
    if isinstance(error, MemoryError):
        name = "MemoryError"
    try:
        text = _clip(str(error) or name, MESSAGE_BYTES_MAX)
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
            frames = frames.tb_next
        if frames is None and isinstance(error, (DflowError, ImportError)):
            return name.encode(), text
        lines = traceback.format_exception(type(error), error, frames)
        return name.encode(), text + b"\n" + _clip("".join(lines), TRACEBACK_BYTES_MAX, keep_end=True)
    except Exception as second:  # A __str__ that raises, or no memory left: the class name must still arrive.
        return name.encode(), f"{name} (its text could not be made: {type(second).__name__})".encode()


def _flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # Closed or replaced by the function: its own business.


def _execute(plans, handler, invocation):
    """Run one invocation and return the call of the worker that reports its end."""
    try:
        plan = plans.get(invocation.shape)
        if plan is None:
            # Few shapes exist (a step, with or without its optional inputs); the bound is for what nobody foresees.
            if len(plans) >= PLANS_MAX:
                plans.clear()
            plan = plans[invocation.shape] = handler.bind(invocation.inputs(), invocation.outputs())
        plan.call(invocation)
    except SystemExit as exit_:
        if isinstance(exit_.code, int) and exit_.code != 0:
            code = exit_.code & 0xFF  # As the kernel would.
            return lambda worker: worker.end_exit(code)
        if exit_.code is not None and exit_.code != 0:
            return _end_error(exit_)
    except BaseException as error:
        return _end_error(error)
    return _end_ok


def _end_error(error):
    name, message = describe(error)
    return lambda worker: worker.end_error(name, message)


def _end_ok(worker):
    worker.end()


def _kept_views(invocation):
    """Whether the function kept views of shared memory, which would soon show other data."""
    if not invocation.close():
        return False
    gc.collect()  # An exception's frames, or another cycle, may hold the last one.
    if not invocation.views_alive():
        return False
    print(
        "dflow: the function kept a view of an input or output after it returned: copy what outlives the "
        "invocation with bytes(view). This process will not be used again.",
        file=sys.stderr,
    )
    return True


def run(worker, handler):
    """Serve invocations until the node retires this process."""
    plans = {}
    while True:
        invocation = worker.next()
        if invocation is None:
            return
        end = _execute(plans, handler, invocation)
        if _kept_views(invocation):
            worker.taint()
        _flush()
        end(worker)
