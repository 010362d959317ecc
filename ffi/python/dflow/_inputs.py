"""What a function sees of its inputs: views, lazy lists, growing streams, and their decoding.

Everything here works on the *invocation* that ``_lib`` provides (see ``_lib.Invocation``) and knows
nothing of C.
"""

import io
import json
from collections.abc import Sequence
from typing import Generic, TypeVar

from . import _ports as ports
from ._errors import BindError, DecodeError

T = TypeVar("T")

_EMPTY = memoryview(b"")

# How far `readline` looks ahead at first; it doubles while no line end turns up.
LINE_WINDOW_BYTES = 8192


class StreamReader(io.RawIOBase):
    """An input object that can be read while its producer still writes it.

    It is a readable, seekable binary file: ``read``, ``readinto``, ``readline``, ``seek`` work, and so does
    wrapping it in ``io.BufferedReader`` or ``io.TextIOWrapper``. Unlike other files, *iterating* yields chunks,
    not lines: each chunk is a read-only memoryview of all that has appeared since the last one, without a copy.
    Use ``lines()`` for lines.

    Views are valid until the function returns.
    """

    def __init__(self, invocation, index, item=0):
        self._invocation = invocation
        self._index = index
        self._item = item
        self._position = 0

    def view(self, n=-1):
        """A read-only memoryview of the next ``n`` bytes (of all the rest if negative), without a copy.

        Blocks until they exist; shorter only at the end of the object.
        """
        self._checkClosed()
        if n == 0:
            return _EMPTY
        everything = n is None or n < 0
        view = self._invocation.read(self._index, self._item, self._position, None if everything else n)
        if not everything and len(view) > n:
            view = view[:n]
        self._position += len(view)
        return view

    def chunks(self, bytes_max=None):
        """Yield memoryviews of what appears, each as soon as there is any of it and at most ``bytes_max`` long."""
        while True:
            view = self._invocation.read(self._index, self._item, self._position, 1)
            if not len(view):
                return
            if bytes_max is not None and len(view) > bytes_max:
                view = view[:bytes_max]
            self._position += len(view)
            yield view

    def __iter__(self):
        return self.chunks()

    def lines(self, encoding=None):
        """An iterator of lines: bytes, or str if ``encoding`` is given."""
        if encoding is None:
            return iter(self.readline, b"")
        return iter(self.text(encoding))

    def text(self, encoding="utf-8"):
        """The rest of the object as a text file."""
        return io.TextIOWrapper(io.BufferedReader(self, 1 << 16), encoding=encoding)

    def read(self, n=-1):
        """``n`` bytes as bytes (all the rest if negative). Blocks until they exist; shorter only at the end."""
        return bytes(self.view(n))

    def readall(self):
        """All the rest as bytes."""
        return bytes(self.view())

    def readinto(self, buffer):
        """Fill ``buffer`` with what there is, at least one byte; 0 means the end."""
        self._checkClosed()
        target = memoryview(buffer).cast("B")
        if not len(target):
            return 0
        view = self._invocation.read(self._index, self._item, self._position, 1)
        n = min(len(view), len(target))
        target[:n] = view[:n]
        self._position += n
        return n

    def readline(self, limit=-1):
        """The next line with its line end, as bytes; ``b''`` at the end."""
        self._checkClosed()
        window, want = LINE_WINDOW_BYTES, 1
        while True:
            view = self._invocation.read(self._index, self._item, self._position, want)
            # Only the window is copied, so that a reader of lines stays linear in a large sealed object.
            head = bytes(view[:window])
            end = head.find(b"\n") + 1
            if not end and 0 <= limit <= len(head):
                end = limit
            if not end and len(view) < want:
                end = len(head)
            if end or not len(view) or limit == 0:
                break
            window = window if len(head) < window else window * 2
            want = len(head) + 1
        if limit >= 0:
            end = min(end, limit)
        self._position += end
        return head[:end]

    def seek(self, offset, whence=io.SEEK_SET):
        """Move to ``offset``. Relative to the end it blocks until the object is complete."""
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            view = self._invocation.read(self._index, self._item, 0, None)
            offset += len(view)
        elif whence != io.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if offset < 0:
            raise ValueError(f"cannot seek to {offset}, before the start")
        self._position = offset
        return offset

    def tell(self):
        """The position of the next read, in bytes."""
        return self._position

    def readable(self):
        """True."""
        return True

    def seekable(self):
        """True: all that was written stays readable."""
        return True


#: As an annotation, ``Stream`` asks for the input as a StreamReader; in ``outputs=`` it declares a stream port.
Stream = StreamReader


class Many(Sequence, Generic[T]):
    """A list input whose items appear while the function runs.

    Iterating and indexing wait for single items; only ``len`` and negative indices wait for the length, which
    is known when the producer ends. ``Many[bytes]`` and the like choose how an item is handed over.
    """

    __slots__ = ("_invocation", "_index", "_make")

    def __init__(self, invocation, index, make):
        self._invocation = invocation
        self._index = index
        self._make = make

    def __getitem__(self, position):
        if isinstance(position, slice):
            start, length, step = position.start or 0, position.stop, position.step or 1
            if length is not None and length >= 0 and start >= 0 and step > 0:
                # A bounded slice needs no length unless it reaches past the end.
                if length and self._invocation.item(self._index, length - 1) is None:
                    length = len(self)
            else:
                length = len(self)
            return [self[i] for i in range(*position.indices(length))]
        if position < 0:
            position += len(self)
            if position < 0:
                raise IndexError("list input index out of range")
        made = self._make(self._invocation, self._index, position)
        if made is _END:
            raise IndexError("list input index out of range")
        return made

    def __iter__(self):
        make, invocation, index, position = self._make, self._invocation, self._index, 0
        while True:
            made = make(invocation, index, position)
            if made is _END:
                return
            yield made
            position += 1

    def __len__(self):
        return self._invocation.count(self._index)

    def __bool__(self):
        return self._invocation.item(self._index, 0) is not None


class Lazy(Generic[T]):
    """An input that is waited for when it is asked for: ``value = parameter.get()``.

    ``Lazy[str]`` and the like choose how the value is handed over.
    """

    __slots__ = ("_invocation", "_make", "_value")

    def __init__(self, invocation, make):
        self._invocation = invocation
        self._make = make
        self._value = _END

    def get(self):
        """The value; blocks until it is complete. ``None`` if the optional source was skipped."""
        if self._value is _END:
            self._value = self._make(self._invocation)
        return self._value


# Stands for "past the end of the list", since None is a value (JSON null).
_END = object()


def _text(view, name):
    try:
        return str(view, "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(
            f"input {name!r} is declared text but is not UTF-8 at byte {error.start}: declare it `bytes`"
        ) from None


_decode_json = json.JSONDecoder().decode


def _json(view, name):
    try:
        return _decode_json(_text(view, name))
    except json.JSONDecodeError as error:
        raise DecodeError(f"input {name!r} is declared json but does not parse: {error}") from None


def _array(view, _name):
    import numpy

    return numpy.frombuffer(view, dtype=numpy.uint8)


def decoder(name, type_, annotation):
    """A function of one complete object's view that makes the value the parameter asks for.

    The annotation wins: ``bytes``, ``bytearray`` and ``str`` are copies of their type, ``memoryview`` and
    ``numpy.ndarray`` (of uint8) are not copied. Without one, a bytes port gives the view, text gives str, json
    gives the document.
    """
    if annotation is bytes or annotation is bytearray:
        return annotation
    if annotation is memoryview:
        return lambda view: view
    if annotation is str and type_ != ports.JSON:
        return lambda view: _text(view, name)
    if getattr(annotation, "__name__", "") == "ndarray" and annotation.__module__.startswith("numpy"):
        return lambda view: _array(view, name)
    if type_ == ports.TEXT:
        return lambda view: _text(view, name)
    if type_ == ports.JSON:
        return lambda view: _json(view, name)
    return lambda view: view


def _one(index, decode):
    def make(invocation):
        view = invocation.get(index)
        return None if view is None else decode(view)

    return make


def _item_maker(name, type_, annotation):
    if annotation is StreamReader:

        def make_stream(invocation, index, position):
            # No byte means an empty item or none at all; only the latter is the end.
            if not len(invocation.read(index, position, 0, 1)) and invocation.item(index, position) is None:
                return _END
            return StreamReader(invocation, index, position)

        return make_stream
    decode = decoder(name, type_, annotation)

    def make(invocation, index, position):
        view = invocation.item(index, position)
        return _END if view is None else decode(view)

    return make


def resolver(index, name, type_, annotation, arguments=()):
    """A function of the invocation that makes the argument for input ``index``.

    ``annotation`` is the parameter's, with ``arguments`` its type arguments: ``Many``, ``Stream`` and ``Lazy``
    return at once, anything else waits for the whole input.
    """
    inner = arguments[0] if arguments else None
    if annotation is Lazy:
        make_inner = resolver(index, name, type_, inner)
        return lambda invocation: Lazy(invocation, make_inner)
    one = _one(index, decoder(name, type_, annotation))
    items = _item_maker(name, type_, inner if annotation in (Many, list, Sequence) else annotation)

    def make(invocation):
        kind = invocation.kind(index)
        if kind == ports.NULL:
            return None
        if kind == ports.LIST:
            if annotation is StreamReader:
                raise BindError(f"input {name!r} is a list: annotate its parameter with dflow.Many[dflow.Stream]")
            many = Many(invocation, index, items)
            return list(many) if annotation is list else many
        if annotation is StreamReader:
            return StreamReader(invocation, index)
        if annotation is Many:
            raise BindError(f"input {name!r} is one object, not a list: its parameter cannot be dflow.Many")
        return one(invocation)

    return make
