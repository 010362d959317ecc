"""The fork server of a Python function: ``python3 -m dflow._zygote FLAGS``, started by a node.

It imports the handler once and then forks a worker whenever the node asks. Forking happens here, in Python, so
that the hooks which modules register with ``os.register_at_fork`` run.
"""

import faulthandler
import gc
import os
import signal
import sys
import threading
import traceback

from . import _bind, _lib, _load, _worker


def _fresh_worker():
    """Undo in a new worker what must not be inherited from the zygote."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        # `random` reseeds itself after a fork, numpy's global generator does not: workers would draw alike.
        numpy_random.seed()


def _work(worker, handler):
    """The life of a worker; does not return."""
    status = 1
    try:
        _fresh_worker()
        _worker.run(worker, handler)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # No exit handlers: they are the zygote's, and must not run once for each worker.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _own_flags(arguments):
    """``(handler, folders)``: the flags among the node's that Python reads itself. The library checks the others."""
    handler, folders = "", []
    for flag, value in zip(arguments[::2], arguments[1::2]):
        if flag == "--":
            break
        if flag == "--handler":
            handler = value
        elif flag == "--path":
            folders.append(value)
    return handler, folders


def main(arguments):
    """Load, then serve until the node is gone. Returns the exit status."""
    if not arguments:
        print("usage: python3 -m dflow._zygote LIBDFLOW FLAGS (a node starts this)", file=sys.stderr)
        return 2
    # Ctrl-C in the terminal reaches the whole foreground group: the node decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    library, *flags = arguments
    zygote = _lib.Zygote(_lib.Library(library), flags)
    name, folders = _own_flags(flags)
    sys.argv = [name]
    try:
        handler = _bind.Handler(_load.load(name, folders))
    except BaseException as error:
        _, message = _worker.describe(error)
        text, _, trace = message.partition(b"\n")
        zygote.failed(type(error).__name__.encode() + b": " + text, trace)
        return 1
    if threading.active_count() > 1:
        print(
            "dflow: the module starts threads while it is imported; they will not exist in the workers. "
            "Start them in the function.",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    # What the import made is shared with all workers: a collection in a worker must not touch (and copy) it.
    gc.collect()
    gc.freeze()
    worker = zygote.serve()
    if worker is not None:
        _work(worker, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
