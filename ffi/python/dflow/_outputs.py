"""From what a function returns, yields or puts to the bytes of output ports."""

import json
from collections.abc import Iterable, Iterator
from types import GeneratorType

from . import _ports as ports
from ._errors import EncodeError, Misuse, NoSuchPort, OutputRefused, OutputTooLarge, nearest


def _plain(value):
    """What JSON has no form for but numpy (and its like) can turn into something it has."""
    tolist = getattr(value, "tolist", None)
    if tolist is None:
        raise EncodeError(f"a {type(value).__name__} has no JSON form: convert it, or declare the port `bytes`")
    return tolist()


_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode

_BUFFERS = (bytes, memoryview, bytearray)
_DOCUMENTS = (dict, list, tuple, int, float)


def _is_buffer(value):
    if isinstance(value, _BUFFERS):
        return True
    try:
        memoryview(value).release()
    except TypeError:
        return False
    return True


def _encode_bytes(value, name):
    if isinstance(value, _BUFFERS):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, _DOCUMENTS):
        return _to_json(value).encode()
    if _is_buffer(value):
        return value
    raise EncodeError(
        f"port {name!r} takes bytes: give it bytes, str, a buffer (memoryview, numpy array) or JSON-like data, "
        f"not {type(value).__name__}"
    )


def _encode_text(value, name):
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (int, float)):
        return str(value).encode()
    if _is_buffer(value):
        return value
    raise EncodeError(f"port {name!r} takes text: give it str, not {type(value).__name__}")


def _encode_json(value, name):
    # Bytes are a document someone has already encoded.
    if isinstance(value, _BUFFERS):
        return value
    try:
        return _to_json(value).encode()
    except ValueError as error:
        raise EncodeError(f"port {name!r} takes json: {error}") from None


ENCODERS = (_encode_bytes, _encode_text, _encode_json)


class Buffer:
    """Memory of an output object for the function to fill in place: ``Context.reserve`` makes it.

    ``view`` is a writable memoryview of the whole reserve. ``commit`` publishes a prefix to readers of a stream
    port; ``seal`` completes the object. As a context manager it seals at the end, unless there was an exception.
    After the seal the memory is no longer writable: a stray write ends the process, by design.
    """

    __slots__ = ("view", "_invocation", "_index", "_sealed")

    def __init__(self, invocation, index, size):
        self._invocation = invocation
        self._index = index
        self._sealed = False
        self.view = invocation.reserve(index, size)

    def __len__(self):
        return len(self.view)

    def commit(self, n):
        """Let readers have the first ``n`` bytes; they must not change from now on."""
        self._invocation.commit(self._index, n)

    def seal(self, n=None):
        """Complete the object with its first ``n`` bytes, by default all that was reserved."""
        if self._sealed:
            raise Misuse("this buffer is sealed already")
        if n is None:
            n = len(self.view)
        self._sealed = True
        self.view = _EMPTY
        self._invocation.seal(self._index, n)

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _traceback):
        if kind is None and not self._sealed:
            self.seal()


_EMPTY = memoryview(b"")


# Address space a stream of undeclared size may fill, in bytes. Only what is written takes memory for long.
STREAM_BYTES_DEFAULT = 64 << 20


class StreamWriter:
    """A file-like writer of one output object: ``Context.writer`` makes it.

    What is written to a stream port can be read downstream at once; on other ports it is collected and put at the
    end. ``close`` completes the object; as a context manager that happens at the end, unless there was an exception.
    """

    def __init__(self, invocation, index, port):
        self._invocation = invocation
        self._index = index
        self._port = port
        # A document is written in pieces of text, not of documents.
        self._encode = ENCODERS[ports.TEXT if port.type == ports.JSON else port.type]
        self._written = 0
        self._collected = None if port.kind == ports.STREAM else bytearray()
        self._memory = None
        self.closed = False

    def write(self, data):
        """Append bytes, a buffer or str (as UTF-8). Returns how many bytes that was."""
        if self.closed:
            raise ValueError(f"the writer of port {self._port.name!r} is closed")
        with memoryview(self._encode(data, self._port.name)) as view:
            n = view.nbytes
            if not n:
                return 0
            if self._collected is None:
                self._publish(view, n)
            else:
                self._collected += view
        self._written += n
        return n

    def _publish(self, view, n):
        end = self._written + n
        if self._memory is None:
            self._memory = self._room(n)
        if end > len(self._memory):
            raise OutputTooLarge(
                f"output {self._port.name!r} has reached {end} bytes and may have {len(self._memory)}: "
                f"declare a larger max_size for it in the workflow"
            )
        self._memory[self._written : end] = view.cast("B") if view.c_contiguous else view.tobytes()
        self._invocation.commit(self._index, end)

    def _room(self, n):
        """Memory for the whole stream. Its size must be chosen now, as what readers have seen cannot move."""
        size = self._port.bytes_max or max(STREAM_BYTES_DEFAULT, n)
        while True:
            try:
                return self._invocation.reserve(self._index, size)
            except OutputRefused:
                if self._port.bytes_max or size // 2 < n:
                    raise
                size //= 2

    def close(self):
        """Complete the object."""
        if self.closed:
            return
        self.closed = True
        if self._memory is None:
            self._invocation.put(self._index, self._collected or b"")
        else:
            self._memory = _EMPTY
            self._invocation.seal(self._index, self._written)

    def tell(self):
        """Bytes written so far."""
        return self._written

    def flush(self):
        """Does nothing: what is written is visible already."""

    def readable(self):
        """False."""
        return False

    def writable(self):
        """True."""
        return True

    def seekable(self):
        """False: what was published cannot change."""
        return False

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _traceback):
        if kind is None:
            self.close()


def emitter(index, port):
    """A function (invocation, value) that writes one whole output port."""
    encode, name, kind = ENCODERS[port.type], port.name, port.kind

    def emit_many(invocation, value):
        if isinstance(value, (str, bytes, bytearray, memoryview, dict)) or not isinstance(value, Iterable):
            raise EncodeError(
                f"port {name!r} is `many`: give it an iterable of items (yield each), not {type(value).__name__}"
            )
        for item in value:
            invocation.put(index, encode(item, name))

    def emit_one(invocation, value):
        if isinstance(value, Iterator):
            if port.type == ports.JSON:
                raise EncodeError(f"port {name!r} is one json document: return it, or declare the port `many`")
            with StreamWriter(invocation, index, port) as writer:
                for chunk in value:
                    writer.write(chunk)
        else:
            invocation.put(index, encode(value, name))

    return emit_many if kind == ports.MANY else emit_one


class Outputs:
    """The output ports of a step, and how a returned value spreads over them."""

    __slots__ = ("ports", "index", "_emit", "_dict_is_value")

    def __init__(self, ports_):
        self.ports = ports_
        self.index = {port.name: i for i, port in enumerate(ports_)}
        self._emit = [emitter(i, port) for i, port in enumerate(ports_)]
        # A single json port could mean either; the document is the natural reading.
        self._dict_is_value = len(ports_) == 1 and ports_[0].type == ports.JSON and ports_[0].kind != ports.MANY

    def find(self, name):
        """The index of the port called ``name``."""
        index = self.index.get(name)
        if index is None:
            have = ", ".join(self.index) or "none"
            raise NoSuchPort(f"the step has no output {name!r}{nearest(name, self.index)}; its outputs: {have}")
        return index

    def put(self, invocation, name, value):
        """Write ``value`` to the port ``name``: one item if it is `many`, else the whole object."""
        index = self.find(name)
        port = self.ports[index]
        if port.kind == ports.MANY:
            invocation.put(index, ENCODERS[port.type](value, name))
        else:
            self._emit[index](invocation, value)

    def deliver(self, invocation, value):
        """Write what a function returned.

        ``None`` puts nothing. A dict names ports, a tuple gives them in order; with a single port any other value
        is that port's. A generator feeds the single `many` port (or else the single stream port), and may
        *return* a dict for the others.
        """
        if value is None:
            return
        count = len(self.ports)
        if type(value) is dict and not self._dict_is_value:
            for name, part in value.items():
                index = self.find(name)
                if part is not None:
                    self._emit[index](invocation, part)
        elif count == 1:
            self._emit[0](invocation, value)
        elif count == 0:
            if isinstance(value, Iterator):
                for _ in value:  # A generator that has only side effects must still run.
                    pass
        elif type(value) is tuple:
            if len(value) != count:
                raise EncodeError(f"the function returned {len(value)} values for {count} outputs: {list(self.index)}")
            for emit, part in zip(self._emit, value):
                if part is not None:
                    emit(invocation, part)
        elif isinstance(value, GeneratorType):
            returned = []

            def feed():
                returned.append((yield from value))

            self._emit[self._generated()](invocation, feed())
            if returned and returned[0] is not None:
                if type(returned[0]) is not dict:
                    raise EncodeError("a generator with several outputs must return a dict by port name")
                self.deliver(invocation, returned[0])
        else:
            raise EncodeError(
                f"the step has outputs {list(self.index)}: return a dict by name or a tuple in that order, "
                f"not {type(value).__name__}"
            )

    def _generated(self):
        for kind in (ports.MANY, ports.STREAM):
            of_kind = [i for i, port in enumerate(self.ports) if port.kind == kind]
            if len(of_kind) == 1:
                return of_kind[0]
        raise EncodeError(
            "the function yields, but the step has no single `many` or stream output to feed: "
            "use a dflow.Context parameter and ctx.put"
        )
