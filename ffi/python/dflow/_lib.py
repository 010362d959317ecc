"""The binding of libdflow.so: the one module that knows ctypes, addresses and the layout of C structs.

The rest of the package sees three classes: Zygote (the fork server's side of the link to the node), Worker (a
function process's side) and Invocation (one execution: inputs by index, outputs by index). Calls that may block
release the interpreter lock.
"""

import ctypes
import os
import struct
import weakref
from ctypes import c_char_p, c_int, c_size_t, c_ssize_t, c_uint32, c_uint64, c_void_p

from . import _errors as errors
from . import _ports as ports

# How an invocation ended, for Worker.end.
OK, ERROR, EXIT = 0, 1, 2
_TAINTED = 1

# Answers of the library that are no errors.
_END_OF_LIST = 1
_NOT_PINNED = 1

_SEALED, _NULL = 1, 2
_UNKNOWN_SIZE = (1 << 64) - 1

_INVOCATION = struct.Struct("=QIIIIQQQQIIQQII")
_PORT = struct.Struct("=QIBBHQQQ")
_VIEW = struct.Struct("=QQII")
# Named, since ctypes would make such a type anew for each call.
_ViewBuffer = ctypes.c_char * _VIEW.size

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


class _Library:
    """The functions of libdflow.so, with their types."""

    _PROTOTYPES = {
        "dflow_last_error": (c_char_p,),
        "dflow_zygote_open": (c_int, c_int, c_void_p, c_void_p),
        "dflow_zygote_option": (c_char_p, c_void_p, c_char_p),
        "dflow_zygote_loaded": (c_int, c_void_p),
        "dflow_zygote_load_failed": (c_int, c_void_p, c_char_p, c_size_t, c_char_p, c_size_t),
        "dflow_zygote_next": (c_int, c_void_p),
        "dflow_zygote_forked": (c_int, c_void_p, c_int),
        "dflow_zygote_child": (c_int, c_void_p, c_void_p),
        "dflow_worker_next": (c_int, c_void_p, c_void_p, c_void_p),
        "dflow_worker_end": (
            (c_int, c_void_p, c_void_p, c_int, c_int) + (c_char_p, c_size_t, c_char_p, c_size_t) + (c_int,)
        ),
        "dflow_get_at": (c_int, c_void_p, c_uint32, c_void_p),
        "dflow_item_at": (c_int, c_void_p, c_uint32, c_uint64, c_void_p),
        "dflow_count_at": (c_int, c_void_p, c_uint32, c_int, c_void_p),
        "dflow_read_at": (c_int, c_void_p, c_uint32, c_uint64, c_uint64, c_uint64, c_void_p),
        "dflow_put_at": (c_int, c_void_p, c_uint32, c_void_p, c_uint64),
        "dflow_reserve_at": (c_int, c_void_p, c_uint32, c_uint64, c_void_p),
        "dflow_commit_at": (c_int, c_void_p, c_uint32, c_uint32, c_uint64),
        "dflow_seal_at": (c_int, c_void_p, c_uint32, c_uint32, c_uint64),
        "dflow_append_at": (c_int, c_void_p, c_uint32, c_void_p, c_uint64),
    }

    def __init__(self, path):
        # Loaded globally, so that native extensions linked to libdflow find this instance and not a second one.
        library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        for name, (result, *arguments) in self._PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name[len("dflow_") :], function)


_library = None


def library():
    """The library that DFLOW_LIB names, else the one the system's loader finds."""
    global _library
    if _library is None:
        _library = _Library(os.environ.get("DFLOW_LIB") or "libdflow.so")
    return _library


# What the library's negative answers are raised as.
_EXCEPTIONS = {}


def _raise(code):
    text = (library().last_error() or b"").decode("utf-8", "replace")
    raise _EXCEPTIONS.get(code, errors.DflowError)(text or f"libdflow answered {code}")


class Zygote:
    """The fork server's link to its node. ``arguments`` are the process's, and the library's to parse."""

    def __init__(self, arguments):
        self._library = library()
        encoded = [os.fsencode(a) for a in arguments]
        array = (c_char_p * (len(encoded) + 1))(*encoded, None)
        handle = c_void_p()
        code = self._library.zygote_open(len(encoded), array, ctypes.byref(handle))
        if code < 0:
            _raise(code)
        self._handle = handle

    def option(self, name):
        """The value of a flag as str, None if it was not given."""
        value = self._library.zygote_option(self._handle, name.encode())
        return None if value is None else os.fsdecode(value)

    def loaded(self):
        """Tell the node that the handler is loaded."""
        self._check(self._library.zygote_loaded(self._handle))

    def load_failed(self, message, trace):
        """Tell the node why the handler could not be loaded; both texts are bytes."""
        self._check(self._library.zygote_load_failed(self._handle, message, len(message), trace, len(trace)))

    def next(self):
        """Serve the node. True: fork now, then call forked() or, in the child, child(). False: the node is gone."""
        code = self._library.zygote_next(self._handle)
        self._check(code)
        return code != 0

    def forked(self, pid):
        """In the parent: the worker's pid, or the negative errno of a fork that failed."""
        self._check(self._library.zygote_forked(self._handle, pid))

    def child(self):
        """In the child: shed what is the zygote's, and return the Worker."""
        handle = c_void_p()
        self._check(self._library.zygote_child(self._handle, ctypes.byref(handle)))
        return Worker(handle)

    @staticmethod
    def _check(code):
        if code < 0:
            _raise(code)


class Worker:
    """A function process's link to its node."""

    def __init__(self, handle):
        self._library = library()
        self._handle = handle
        self._context = c_void_p()
        self._context_pointer = ctypes.byref(self._context)
        self._description = ctypes.create_string_buffer(_INVOCATION.size)

    def next(self):
        """The next Invocation; None when the node retires this process."""
        code = self._library.worker_next(self._handle, self._context_pointer, self._description)
        if code < 0:
            _raise(code)
        if code == 0:
            return None
        return Invocation(self._library, self._context.value, _INVOCATION.unpack_from(self._description))

    def end(self, invocation, how, code, name, message, tainted):
        """Report how ``invocation`` ended: OK, ERROR with name and message (bytes), or EXIT with a code.

        ``tainted`` asks the node not to use this process again.
        """
        answer = self._library.worker_end(
            self._handle,
            invocation.handle,
            how,
            code,
            name,
            len(name),
            message,
            len(message),
            _TAINTED if tainted else 0,
        )
        if answer < 0:
            _raise(answer)


class Invocation:
    """One execution of the step. Inputs and outputs go by their index in the step.

    Views it returns are slices of shared memory: no copies, read-only unless reserved. All calls but the plain
    attributes may block. After ``close`` they raise Misuse.
    """

    __slots__ = (
        "run",
        "step_index",
        "item_index",
        "attempt",
        "threads",
        "timeout_ms",
        "shape",
        "handle",
        "_library",
        "_names",
        "_open",
        "_inputs",
        "_outputs",
        "_memory",
        "_exporter",
        "_read_only",
    )

    def __init__(self, lib, handle, description):
        (
            self.run,
            self.step_index,
            self.item_index,
            self.attempt,
            self.threads,
            self.timeout_ms,
            self.shape,
            workflow,
            step,
            workflow_bytes,
            step_bytes,
            inputs,
            outputs,
            n_inputs,
            n_outputs,
        ) = description
        self._library = lib
        self.handle = handle
        self._open = True
        exporter = _Memory.from_address(0)
        self._exporter = weakref.ref(exporter)
        self._memory = memory = memoryview(exporter).cast("B")
        self._read_only = memory.toreadonly()
        self._names = (workflow, workflow_bytes, step, step_bytes)
        self._inputs = list(_PORT.iter_unpack(memory[inputs : inputs + n_inputs * _PORT.size]))
        self._outputs = (outputs, n_outputs)

    # What it is.

    @property
    def workflow(self):
        """Name of the workflow."""
        return self._text(*self._names[:2])

    @property
    def step(self):
        """Name of the step."""
        return self._text(*self._names[2:])

    def inputs(self):
        """The InputPorts."""
        return [ports.InputPort(self._text(p[0], p[1]), p[2]) for p in self._inputs]

    def outputs(self):
        """The OutputPorts."""
        address, count = self._outputs
        raw = _PORT.iter_unpack(self._bytes(address, count * _PORT.size))
        return [ports.OutputPort(self._text(p[0], p[1]), p[2], p[3]) for p in raw]

    def _bytes(self, address, count):
        self._check_open()
        return bytes(self._read_only[address : address + count])

    def _text(self, address, count):
        return self._bytes(address, count).decode("utf-8", "replace")

    # Inputs.

    def kind(self, index):
        """READY, NULL, ONE or LIST (see ``_ports``). A READY input is one complete object."""
        return self._inputs[index][3]

    def get(self, index):
        """A view of the object, when it is complete; None if its source was skipped."""
        self._check_open()
        port = self._inputs[index]
        if port[3] == ports.READY:
            return self._read_only[port[5] : port[5] + port[6]]
        if port[3] == ports.NULL:
            return None
        answer = _ViewBuffer()
        code = self._library.get_at(self.handle, index, answer)
        if code:
            _raise(code)
        address, count, flags, _ = _VIEW.unpack(answer)
        return None if flags & _NULL else self._read_only[address : address + count]

    def item(self, index, position):
        """A view of the list's item, when it is complete; None past the end."""
        self._check_open()
        answer = _ViewBuffer()
        code = self._library.item_at(self.handle, index, position, answer)
        if code:
            if code == _END_OF_LIST:
                return None
            _raise(code)
        address, count, _, _ = _VIEW.unpack(answer)
        return self._read_only[address : address + count]

    def count(self, index):
        """The length of the list, when it is known."""
        return self._count(index, 1)[0]

    def known(self, index):
        """``(items so far, whether that is the length)``. Does not block."""
        return self._count(index, 0)

    def _count(self, index, wait):
        self._check_open()
        count = c_uint64()
        code = self._library.count_at(self.handle, index, wait, ctypes.byref(count))
        if code < 0:
            _raise(code)
        return count.value, code != _NOT_PINNED

    def read(self, index, item, offset, least):
        """``(view of all that is readable from offset, whether the object is complete)``.

        Waits for ``least`` bytes from ``offset`` (None: for all), or the object's end. None past the end of a list.
        """
        self._check_open()
        port = self._inputs[index]
        if port[3] == ports.READY:
            end = port[5] + port[6]
            return self._read_only[min(port[5] + offset, end) : end], True
        answer = _ViewBuffer()
        least = _UNKNOWN_SIZE if least is None else least
        code = self._library.read_at(self.handle, index, item, offset, least, answer)
        if code:
            if code == _END_OF_LIST:
                return None
            _raise(code)
        address, count, flags, _ = _VIEW.unpack(answer)
        return self._read_only[address : address + count], bool(flags & _SEALED)

    # Outputs.

    def put(self, index, data):
        """Write and seal an object; on a `many` port append an item. ``data`` is any buffer."""
        self._check_open()
        if type(data) is bytes:
            code = self._library.put_at(self.handle, index, data, len(data))
        else:
            code = self._with_buffer(self._library.put_at, index, data)
        if code:
            _raise(code)

    def append(self, index, data):
        """Write the next part of an object of unknown size; finish() ends it."""
        self._check_open()
        code = self._with_buffer(self._library.append_at, index, data)
        if code:
            _raise(code)

    def finish(self, index):
        """Seal what append() wrote."""
        self.seal(index, 0, _UNKNOWN_SIZE)

    def reserve(self, index, count):
        """``(writable view of count bytes, item number)`` of a new object."""
        self._check_open()
        answer = _ViewBuffer()
        code = self._library.reserve_at(self.handle, index, count, answer)
        if code:
            _raise(code)
        address, _, _, item = _VIEW.unpack(answer)
        return self._memory[address : address + count], item

    def commit(self, index, item, count):
        """Let readers have the first ``count`` bytes of a reserved object."""
        self._check_open()
        code = self._library.commit_at(self.handle, index, item, count)
        if code:
            _raise(code)

    def seal(self, index, item, count):
        """Complete a reserved object with its first ``count`` bytes."""
        self._check_open()
        code = self._library.seal_at(self.handle, index, item, count)
        if code:
            _raise(code)

    def _with_buffer(self, call, index, data):
        buffer = _PyBuffer()
        pointer = ctypes.byref(buffer)
        try:
            _acquire(data, pointer, _SIMPLE)
        except (BufferError, ValueError):  # numpy says ValueError
            return self._with_strided(call, index, data)
        try:
            return call(self.handle, index, buffer.buf, buffer.len)
        finally:
            _release(pointer)

    def _with_strided(self, call, index, data):
        """Give a buffer that is not contiguous to ``call``: gathered once, straight into the output if it is a put."""
        buffer = _PyBuffer()
        pointer = ctypes.byref(buffer)
        _acquire(data, pointer, _FULL_READONLY)
        try:
            if call is self._library.put_at:
                view, item = self.reserve(index, buffer.len)
                address = ctypes.addressof(ctypes.c_char.from_buffer(view)) if buffer.len else None
            else:
                view, item = ctypes.create_string_buffer(max(buffer.len, 1)), None
                address = ctypes.addressof(view)
            if buffer.len:
                _copy_out(address, pointer, buffer.len, b"C")
            if item is None:
                return call(self.handle, index, address, buffer.len)
            self.seal(index, item, buffer.len)
            return 0
        finally:
            _release(pointer)

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
