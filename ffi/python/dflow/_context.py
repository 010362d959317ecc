"""What a function can ask of its invocation."""

from ._errors import Misuse, NoSuchPort, nearest
from ._inputs import Lazy, Many, StreamReader, resolver
from ._outputs import Buffer, StreamWriter


class Context:
    """The invocation, given to a parameter called ``ctx`` or annotated ``dflow.Context``."""

    __slots__ = ("_inputs", "_invocation", "_outputs")

    def __init__(self, invocation, inputs, outputs):
        self._invocation = invocation
        self._inputs = inputs
        self._outputs = outputs

    @property
    def run(self):
        """Number of the run."""
        return self._invocation.run

    @property
    def workflow(self):
        """Name of the workflow."""
        return self._invocation.workflow

    @property
    def step(self):
        """Name of the step."""
        return self._invocation.step

    @property
    def item(self):
        """Index of the foreach item, 0 for a step without foreach."""
        return self._invocation.item_index

    @property
    def attempt(self):
        """The try, from 1."""
        return self._invocation.attempt

    @property
    def timeout_ms(self):
        """Milliseconds until the node ends the invocation, 0 for no limit; counted from its start."""
        return self._invocation.timeout_ms

    @property
    def threads(self):
        """How many threads the function may call its own."""
        return self._invocation.threads

    @property
    def inputs(self):
        """Names of the inputs, in the order of the step."""
        return [port.name for port in self._inputs]

    @property
    def outputs(self):
        """Names of the output ports, in the order of the step."""
        return [port.name for port in self._outputs.ports]

    def get(self, name, as_=None):
        """The input ``name``, waiting for it as a parameter annotated ``as_`` would."""
        index = self._input(name)
        port = self._inputs[index]
        origin, arguments = getattr(as_, "__origin__", as_), getattr(as_, "__args__", ())
        return resolver(index, port.name, port.type, origin, arguments)(self._invocation)

    def stream(self, name):
        """The input ``name`` as a StreamReader."""
        return self.get(name, StreamReader)

    def many(self, name):
        """The list input ``name`` as a lazy sequence."""
        return self.get(name, Many)

    def lazy(self, name):
        """The input ``name``, waited for at its ``get()``."""
        return self.get(name, Lazy)

    def put(self, port, value):
        """Write and seal ``value`` on ``port``; on a `many` port append it as one item."""
        self._outputs.put(self._invocation, port, value)

    def reserve(self, port, size):
        """A Buffer of ``size`` bytes of the output itself, to be filled in place."""
        if size < 0:
            raise Misuse(f"cannot reserve {size} bytes")
        return Buffer(self._invocation, self._outputs.find(port), size)

    def writer(self, port):
        """A file-like writer for an object whose size is not known beforehand."""
        index = self._outputs.find(port)
        return StreamWriter(self._invocation, index, self._outputs.ports[index])

    def _input(self, name):
        for index, port in enumerate(self._inputs):
            if port.name == name:
                return index
        names = [port.name for port in self._inputs]
        raise NoSuchPort(f"the step has no input {name!r}{nearest(name, names)}; its inputs: {', '.join(names)}")

    def __repr__(self):
        return f"<dflow.Context run {self.run} step {self.step!r} item {self.item} attempt {self.attempt}>"
