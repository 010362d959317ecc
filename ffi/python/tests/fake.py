"""An invocation made of plain Python objects, with the same verbs as ``dflow._lib.Invocation``.

It is stricter than the library where that helps a test: a double put, a seal past the reserve or a use after close
raises at once. Growing inputs are ``Growing`` objects that another thread feeds.
"""

import threading

from dflow import _errors as errors
from dflow import _ports as ports

WAIT_S = 10


class Growing:
    """A list of objects, or the bytes of one, that appear over time."""

    def __init__(self):
        self.parts, self.ended, self.changed = [], False, threading.Condition()

    def add(self, part):
        with self.changed:
            self.parts.append(bytes(part))
            self.changed.notify_all()

    def end(self):
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait(self, ready):
        with self.changed:
            if not self.changed.wait_for(lambda: self.ended or ready(), WAIT_S):
                raise AssertionError("waited too long for an input: the test is wrong or the code deadlocks")


class Null:
    """An input whose optional source was skipped."""


class FakeInvocation:
    """``inputs``: (name, type, value) with bytes, a list of bytes (or of Growing), Growing, a Many or Null.

    ``outputs``: (name, type, kind[, bytes_max]). What was put is in ``put_values`` by name: bytes, or a list for `many`.
    """

    store_bytes = 1 << 30

    def __init__(self, inputs=(), outputs=(), shape=1):
        self.run, self.workflow, self.step, self.item_index, self.attempt = 7, "flow", "count", 3, 1
        self.threads, self.timeout_ms, self.shape = 1, 0, shape
        self._inputs, self._outputs = list(inputs), list(outputs)
        self.put_values, self.watermarks, self._reserved, self._open = {}, {}, {}, True

    def inputs(self):
        return [ports.InputPort(name, type_) for name, type_, _ in self._inputs]

    def outputs(self):
        return [ports.OutputPort(*port) for port in self._outputs]

    def kind(self, index):
        value = self._inputs[index][2]
        if isinstance(value, Null):
            return ports.NULL
        if isinstance(value, ManyFake):
            return ports.LIST
        return ports.ONE

    def get(self, index):
        self._check_open()
        value = self._inputs[index][2]
        if isinstance(value, Null):
            return None
        if isinstance(value, Growing):
            value.wait(lambda: False)
            value = b"".join(value.parts)
        return memoryview(value)

    def item(self, index, position):
        self._check_open()
        items = self._inputs[index][2]
        items.wait(lambda: len(items.parts) > position)
        return memoryview(items.parts[position]) if position < len(items.parts) else None

    def count(self, index):
        items = self._inputs[index][2]
        items.wait(lambda: False)
        return len(items.parts)

    def read(self, index, item, offset, least):
        self._check_open()
        value = self._inputs[index][2]
        if isinstance(value, ManyFake):
            view = self.item(index, item)
            return memoryview(b"") if view is None else view[offset:]
        if isinstance(value, bytes):
            return memoryview(value)[offset:]
        value.wait(lambda: least is not None and sum(map(len, value.parts)) >= offset + max(least, 1))
        return memoryview(b"".join(value.parts))[offset:]

    def put(self, index, data):
        self._check_open()
        name, _, kind = self._outputs[index][:3]
        if kind == ports.MANY:
            self.put_values.setdefault(name, []).append(bytes(data))
        elif name in self.put_values:
            raise errors.PutTwice(f"output {name!r} is put already")
        else:
            self.put_values[name] = bytes(data)

    def reserve(self, index, count):
        self._check_open()
        if index in self._reserved:
            raise errors.Misuse("one reservation at a time")
        if count > self.store_bytes:
            raise errors.OutputRefused(f"the store has {self.store_bytes} bytes")
        memory = self._reserved[index] = bytearray(count)
        return memoryview(memory)

    def commit(self, index, count):
        assert count <= len(self._reserved[index])
        self.watermarks.setdefault(self._outputs[index][0], []).append(count)

    def seal(self, index, count):
        memory = self._reserved.pop(index)
        if count > len(memory):
            raise errors.OutputTooLarge(f"{count} bytes do not fit the reserve of {len(memory)}")
        self.put(index, memory[:count])

    def _check_open(self):
        if not self._open:
            raise errors.Misuse("the invocation has ended")

    def close(self):
        self._open = False
        return False

    def views_alive(self):
        return False


class ManyFake(Growing):
    """A list input. Made complete from ``items``, or fed by another thread."""

    def __init__(self, items=None):
        super().__init__()
        if items is not None:
            self.parts, self.ended = [bytes(i) for i in items], True


def call(function, inputs=(), outputs=()):
    """Bind ``function`` to a fake invocation, call it, return the invocation."""
    from dflow._bind import Handler

    invocation = FakeInvocation(inputs, outputs)
    Handler(function).bind(invocation.inputs(), invocation.outputs()).call(invocation)
    return invocation
