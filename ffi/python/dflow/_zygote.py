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


def _work(zygote, handler):
    """The life of a worker; returns its exit status."""
    worker = zygote.child()
    _fresh_worker()
    _worker.run(worker, handler)
    return 0


def _serve(zygote, handler):
    while zygote.next():
        try:
            pid = os.fork()
        except OSError as error:
            zygote.forked(-error.errno)
            continue
        if pid:
            zygote.forked(pid)
            continue
        status = 1
        try:
            status = _work(zygote, handler)
        except BaseException:
            traceback.print_exc()
        finally:
            # No exit handlers: they are the zygote's, and must not run once for each worker.
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)


def main(arguments):
    """Load, then serve until the node is gone. Returns the exit status."""
    # Ctrl-C in the terminal reaches the whole foreground group: the node decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    zygote = _lib.Zygote(arguments)
    sys.argv = [zygote.option("handler") or "dflow"]
    try:
        handler = _bind.Handler(_load.load(zygote.option("handler") or "", zygote.option("dir")))
    except BaseException as error:
        _, message = _worker.describe(error)
        text, _, trace = message.partition(b"\n")
        zygote.load_failed(type(error).__name__.encode() + b": " + text, trace)
        return 1
    if threading.active_count() > 1:
        print(
            "dflow: the module starts threads while it is imported; they will not exist in the workers. "
            "Start them in the function.",
            file=sys.stderr,
        )
    sys.stdout.flush()
    # What the import made is shared with all workers: a collection in a worker must not touch (and copy) it.
    gc.collect()
    gc.freeze()
    zygote.loaded()
    _serve(zygote, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
