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

    ``outputs``: (name, type, kind). What was put is in ``put_values`` by name: bytes, or a list for `many`.
    """

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
        return ports.READY if isinstance(value, bytes) else ports.ONE

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

    def known(self, index):
        items = self._inputs[index][2]
        return len(items.parts), items.ended

    def read(self, index, item, offset, least):
        self._check_open()
        value = self._inputs[index][2]
        if isinstance(value, ManyFake):
            view = self.item(index, item)
            return None if view is None else (view[offset:], True)
        if isinstance(value, bytes):
            return memoryview(value)[offset:], True
        value.wait(lambda: least is not None and sum(map(len, value.parts)) >= offset + least)
        return memoryview(b"".join(value.parts))[offset:], value.ended

    def put(self, index, data):
        self._check_open()
        name, _, kind = self._outputs[index]
        if kind == ports.MANY:
            self.put_values.setdefault(name, []).append(bytes(data))
        elif name in self.put_values:
            raise errors.PutTwice(f"output {name!r} is put already")
        else:
            self.put_values[name] = bytes(data)

    def append(self, index, data):
        self._check_open()
        name = self._outputs[index][0]
        if name in self.put_values:
            raise errors.PutTwice(f"output {name!r} is put already")
        self.watermarks.setdefault(name, []).append(bytes(data))

    def finish(self, index):
        self.put(index, b"".join(self.watermarks.get(self._outputs[index][0], [])))

    def reserve(self, index, count):
        self._check_open()
        item = len([key for key in self._reserved if key[0] == index])
        memory = self._reserved[index, item] = bytearray(count)
        return memoryview(memory), item

    def commit(self, index, item, count):
        assert count <= len(self._reserved[index, item])
        self.watermarks.setdefault(self._outputs[index][0], []).append(count)

    def seal(self, index, item, count):
        memory = self._reserved[index, item]
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
