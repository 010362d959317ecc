"""The binding of libdflow.so: the one module that knows ctypes, addresses and the layout of C structs.

The rest of the package sees three classes: Zygote (the fork server's side of the link to the node), Worker (a
function process's side) and Invocation (one execution: inputs by index, outputs by index). Calls that may block
release the interpreter lock. The C side is described in dflow.h and dflow_worker.h.
"""

import ctypes
import os
import struct
import weakref
from ctypes import c_char_p, c_int, c_ssize_t, c_uint32, c_uint64, c_void_p

from . import _errors as errors
from . import _ports as ports

# The positive answers of the library.
_END, _NULL, _WORKER = 1, 2, 3

_UNKNOWN_SIZE = (1 << 64) - 1

# Structs of the headers, in native layout.
_CALL = struct.Struct("@PPPPIIQ")  # ctx, info, inputs, outputs, their lengths, signature
_INFO = struct.Struct("@QPPIIIIQ")  # run, workflow, step, step index, item, attempt, threads, timeout_ms
_INPUT = struct.Struct("@PPQIIII")  # name, data, bytes, name_bytes, type, shape, state
_OUTPUT = struct.Struct("@PQIIII")  # name, bytes_max, name_bytes, type, kind, items_max
_VIEW = struct.Struct("@PQ")  # data, bytes
# Named, since ctypes would make such a type anew for each call.
_ViewBuffer = ctypes.c_char * _VIEW.size

_ONE = 0
_READY, _ABSENT = 1, 2

# All a process can address. One exporter of this type lends its buffer to all views of an invocation, because a
# slice of a memoryview costs a tenth of a ctypes array made for each length, and because its death tells that no
# view, nor any array over one, is left.
_ADDRESSES = (1 << 47) - 1


class _Memory(ctypes.c_ubyte * _ADDRESSES):
    """Exports the address space as a buffer. Only extents that the library named are ever sliced from it."""


class _PyBuffer(ctypes.Structure):
    """CPython's ``Py_buffer``, whose layout is part of its stable ABI."""

    _fields_ = [
        ("buf", c_void_p),
        ("obj", c_void_p),
        ("len", c_ssize_t),
        ("itemsize", c_ssize_t),
        ("readonly", c_int),
        ("ndim", c_int),
        ("format", c_char_p),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    ]


_SIMPLE, _FULL_READONLY = 0, 0x11C


def _python(name, result, *arguments):
    function = getattr(ctypes.pythonapi, name)
    function.restype, function.argtypes = result, arguments
    return function


_acquire = _python("PyObject_GetBuffer", c_int, ctypes.py_object, c_void_p, c_int)
_release = _python("PyBuffer_Release", None, c_void_p)
_copy_out = _python("PyBuffer_ToContiguous", c_int, c_void_p, c_void_p, c_ssize_t, ctypes.c_char)


_FORK = ctypes.CFUNCTYPE(c_int, c_void_p, use_errno=True)

_PROTOTYPES = {
    "last_error": (c_char_p,),
    "zygote_open": (c_int, c_int, c_void_p, c_void_p),
    "zygote_failed": (c_int, c_void_p, c_char_p, c_char_p),
    "zygote_serve": (c_int, c_void_p, _FORK, c_void_p, c_void_p),
    "worker_next": (c_int, c_void_p, c_void_p),
    "worker_end": (c_int, c_void_p, c_char_p, c_char_p),
    "worker_end_exit": (c_int, c_void_p, c_int),
    "worker_taint": (c_int, c_void_p),
    "get": (c_int, c_void_p, c_int, c_void_p),
    "get_item": (c_int, c_void_p, c_int, c_uint32, c_void_p),
    "count": (c_int, c_void_p, c_int, c_void_p),
    "read": (c_int, c_void_p, c_int, c_uint32, c_uint64, c_uint64, c_void_p),
    "put": (c_int, c_void_p, c_int, c_void_p, c_uint64),
    "reserve": (c_int, c_void_p, c_int, c_uint64, c_void_p),
    "commit": (c_int, c_void_p, c_int, c_uint64),
    "seal": (c_int, c_void_p, c_int, c_uint64),
}


# Functions a libdflow may lack; the binding then says less to the node (see Worker).
_OPTIONAL = {"worker_end_exit", "worker_taint"}


class Library:
    """The functions of libdflow.so without their prefix, with their types."""

    def __init__(self, path):
        # Loaded globally, so that native extensions linked to libdflow find this instance and not a second one.
        library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        for name, (result, *arguments) in _PROTOTYPES.items():
            function = getattr(library, f"dflow_{name}", None)
            if function is None and name in _OPTIONAL:
                setattr(self, name, None)
                continue
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def check(self, code):
        """Raise what a negative answer means."""
        if code < 0:
            text = (self.last_error() or b"").decode("utf-8", "replace")
            raise _EXCEPTIONS.get(code, errors.DflowError)(text or f"libdflow answered {code}")


# What the library's negative answers are raised as (DFLOW_E_... of dflow.h).
_EXCEPTIONS = {
    -1: errors.Misuse,
    -2: errors.NoSuchPort,
    -3: errors.Misuse,
    -4: errors.PutTwice,
    -5: errors.OutputTooLarge,
    -6: errors.Misuse,
    -7: errors.OutputRefused,
    -8: errors.InputFailed,
    -9: errors.TooManyItems,
    -10: errors.Misuse,
    -11: errors.NodeGone,
}


class Zygote:
    """The fork server's link to its node. ``arguments`` are those the node gave for the library to parse."""

    def __init__(self, library, arguments):
        self._library = library
        encoded = [os.fsencode(a) for a in arguments]
        array = (c_char_p * (len(encoded) + 1))(*encoded, None)
        self._handle = c_void_p()
        library.check(library.zygote_open(len(encoded), array, ctypes.byref(self._handle)))

    def failed(self, message, trace):
        """Tell the node why the handler could not be loaded; both texts are bytes."""
        self._library.check(self._library.zygote_failed(self._handle, message, trace))

    def serve(self):
        """Tell the node that the handler is loaded, and fork workers for it.

        Returns twice or more: None in the zygote, when the node is gone, and a Worker in each new worker.
        """

        def fork(_user):
            # An exception must not reach C, where it would read as 0: "you are the child".
            try:
                return os.fork()
            except OSError as error:
                ctypes.set_errno(error.errno)
            except BaseException:
                ctypes.set_errno(0)
            return -1

        callback = _FORK(fork)
        worker = c_void_p()
        code = self._library.zygote_serve(self._handle, callback, None, ctypes.byref(worker))
        self._library.check(code)
        return Worker(self._library, worker) if code == _WORKER else None


class Worker:
    """A function process's link to its node."""

    def __init__(self, library, handle):
        self._library = library
        self._handle = handle
        self._call = ctypes.create_string_buffer(_CALL.size)

    def next(self):
        """The next Invocation; None when the node retires this process."""
        code = self._library.worker_next(self._handle, self._call)
        if code:
            self._library.check(code)
            return None
        return Invocation(self._library, _CALL.unpack_from(self._call))

    def taint(self):
        """Ask the node not to use this process again after the current invocation."""
        # Without this call the node may use the process again; the warning on stderr still says why it should not.
        if self._library.worker_taint is not None:
            self._library.check(self._library.worker_taint(self._handle))

    def end(self):
        """Report success of the current invocation, as far as the function is concerned."""
        self._library.check(self._library.worker_end(self._handle, None, None))

    def end_error(self, name, message):
        """Report an error: its class's name and what happened, as bytes."""
        # C strings end at a NUL, which an exception's text may well contain.
        message = message.replace(b"\0", b"\\0")
        self._library.check(self._library.worker_end(self._handle, name, message))

    def end_exit(self, code):
        """Report that the function exited with a status."""
        if self._library.worker_end_exit is None:
            self.end_error(b"SystemExit", f"the function exited with status {code}".encode())
            return
        self._library.check(self._library.worker_end_exit(self._handle, code))


class Invocation:
    """One execution of the step. Inputs and outputs go by their index in the step.

    Views it returns are slices of shared memory: no copies, read-only unless reserved. All calls but the plain
    attributes may block. After ``close`` they raise Misuse.
    """

    __slots__ = (
        "attempt",
        "item_index",
        "run",
        "shape",
        "step_index",
        "threads",
        "timeout_ms",
        "_context",
        "_exporter",
        "_inputs",
        "_library",
        "_memory",
        "_names",
        "_open",
        "_outputs",
        "_read_only",
    )

    def __init__(self, library, call):
        self._library = library
        self._context, info, inputs, outputs, n_inputs, n_outputs, self.shape = call
        self._open = True
        exporter = _Memory.from_address(0)
        self._exporter = weakref.ref(exporter)
        self._memory = memory = memoryview(exporter).cast("B")
        self._read_only = memory.toreadonly()
        (
            self.run,
            workflow,
            step,
            self.step_index,
            self.item_index,
            self.attempt,
            self.threads,
            self.timeout_ms,
        ) = _INFO.unpack_from(memory, info)
        self._names = (workflow, step)
        self._inputs = list(_INPUT.iter_unpack(memory[inputs : inputs + n_inputs * _INPUT.size]))
        self._outputs = (outputs, n_outputs)

    # What it is.

    @property
    def workflow(self):
        """Name of the workflow."""
        self._check_open()
        return ctypes.string_at(self._names[0]).decode()

    @property
    def step(self):
        """Name of the step."""
        self._check_open()
        return ctypes.string_at(self._names[1]).decode()

    def inputs(self):
        """The InputPorts."""
        return [ports.InputPort(self._text(p[0], p[3]), p[4]) for p in self._inputs]

    def outputs(self):
        """The OutputPorts."""
        self._check_open()
        address, count = self._outputs
        raw = _OUTPUT.iter_unpack(self._read_only[address : address + count * _OUTPUT.size])
        return [ports.OutputPort(self._text(p[0], p[2]), p[3], p[4], p[1]) for p in raw]

    def _text(self, address, count):
        self._check_open()
        return str(self._read_only[address : address + count], "utf-8")

    # Inputs.

    def kind(self, index):
        """NULL, ONE or LIST (see ``_ports``): what the input is, as far as it is known at the start."""
        _, _, _, _, _, shape, state = self._inputs[index]
        if state == _ABSENT:
            return ports.NULL
        return ports.ONE if shape == _ONE else ports.LIST

    def get(self, index):
        """A view of the object, when it is complete; None if its source was skipped."""
        self._check_open()
        port = self._inputs[index]
        if port[6] == _READY:
            return self._read_only[port[1] : port[1] + port[2]]
        answer = _ViewBuffer()
        code = self._library.get(self._context, index, answer)
        if code:
            self._library.check(code)
            return None
        return self._view(answer)

    def item(self, index, position):
        """A view of the list's item, when it is complete; None past the end."""
        self._check_open()
        answer = _ViewBuffer()
        code = self._library.get_item(self._context, index, position, answer)
        if code:
            self._library.check(code)
            return None
        return self._view(answer)

    def count(self, index):
        """The length of the list, when it is known."""
        self._check_open()
        count = c_uint32()
        code = self._library.count(self._context, index, ctypes.byref(count))
        self._library.check(code)
        return count.value

    def read(self, index, item, offset, least):
        """A view of all that is readable from ``offset``.

        Waits for ``least`` bytes, at least 1 (None: for all); it is shorter only if the object is complete. ``item``
        is the position in a list input, else 0.
        """
        self._check_open()
        port = self._inputs[index]
        if port[6] == _READY:
            end = port[1] + port[2]
            return self._read_only[min(port[1] + offset, end) : end]
        answer = _ViewBuffer()
        least = _UNKNOWN_SIZE if least is None else least
        code = self._library.read(self._context, index, item, offset, least, answer)
        if code:
            self._library.check(code)
            return self._read_only[:0]
        return self._view(answer)

    def _view(self, answer):
        address, count = _VIEW.unpack(answer)
        return self._read_only[address : address + count]

    # Outputs.

    def put(self, index, data):
        """Write and seal an object; on a `many` port append an item. ``data`` is any buffer."""
        self._check_open()
        if type(data) is bytes:
            self._library.check(self._library.put(self._context, index, data, len(data)))
            return
        buffer = _PyBuffer()
        pointer = ctypes.byref(buffer)
        try:
            _acquire(data, pointer, _SIMPLE)
        except (BufferError, ValueError):  # numpy says ValueError
            self._put_strided(index, data)
            return
        try:
            self._library.check(self._library.put(self._context, index, buffer.buf, buffer.len))
        finally:
            _release(pointer)

    def _put_strided(self, index, data):
        """Put a buffer that is not contiguous: gathered straight into the output's memory."""
        buffer = _PyBuffer()
        pointer = ctypes.byref(buffer)
        _acquire(data, pointer, _FULL_READONLY)
        try:
            address = self._reserve(index, buffer.len)
            if buffer.len:
                _copy_out(address, pointer, buffer.len, b"C")
            self.seal(index, buffer.len)
        finally:
            _release(pointer)

    def reserve(self, index, count):
        """A writable view of ``count`` bytes that are to become the object, or the next item of a `many` port."""
        address = self._reserve(index, count)
        return self._memory[address : address + count]

    def _reserve(self, index, count):
        self._check_open()
        address = c_void_p()
        self._library.check(self._library.reserve(self._context, index, count, ctypes.byref(address)))
        return address.value or 0

    def commit(self, index, count):
        """Let readers have the first ``count`` bytes of what is reserved."""
        self._check_open()
        self._library.check(self._library.commit(self._context, index, count))

    def seal(self, index, count):
        """Complete what is reserved with its first ``count`` bytes."""
        self._check_open()
        self._library.check(self._library.seal(self._context, index, count))

    # Its end.

    def _check_open(self):
        if not self._open:
            raise errors.Misuse("the invocation has ended: its inputs and outputs cannot be used any more")

    def close(self):
        """Forbid further use. Returns whether views (or arrays over them) are still alive."""
        self._open = False
        self._memory = self._read_only = None
        return self.views_alive()

    def views_alive(self):
        """Whether, after close(), anyone still holds a view."""
        return self._exporter() is not None
