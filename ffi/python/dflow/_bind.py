"""Fits a handler's parameters to a step's inputs, once for each shape of invocation."""

import inspect
import types
import typing

from ._context import Context
from ._errors import BindError, nearest
from ._inputs import resolver
from ._outputs import Outputs

_UNIONS = {typing.Union, getattr(types, "UnionType", typing.Union)}


def _annotation(hint):
    """``(class, type arguments)`` of an annotation, Optional removed."""
    while True:
        origin = typing.get_origin(hint)
        if origin in _UNIONS:
            members = [m for m in typing.get_args(hint) if m is not type(None)]
            if len(members) != 1:
                return None, ()
            hint = members[0]
        elif origin is not None:
            return origin, tuple(_annotation(a)[0] for a in typing.get_args(hint))
        else:
            return hint, ()


def _parameter_name(port):
    """The identifier that stands for a port name: workflow files allow dashes."""
    return port.replace("-", "_")


class Handler:
    """A user's function and what is known of its signature."""

    def __init__(self, function):
        self.function = function
        self.name = getattr(function, "__qualname__", None) or type(function).__qualname__
        self.is_async = inspect.iscoroutinefunction(function)
        try:
            self.parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            # Some built-ins have no signature: they get the inputs in order.
            self.parameters = [inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)]
        self.hints = self._hints()

    def _hints(self):
        target = self.function
        if not inspect.isroutine(target) and callable(target):
            target = type(target).__call__
        target = inspect.unwrap(target)
        try:
            return typing.get_type_hints(target)
        except Exception:
            # One unresolvable name (an import under TYPE_CHECKING) must not cost the other hints.
            return {p.name: p.annotation for p in self.parameters if not isinstance(p.annotation, str)}

    def bind(self, inputs, outputs):
        """The Plan for invocations with these InputPorts and OutputPorts. Raises BindError."""
        free = {_parameter_name(port.name): index for index, port in enumerate(inputs)}
        names = list(free)
        positional, keyword, spread, missing = [], [], None, []
        outputs = Outputs(outputs)

        def context(invocation):
            return Context(invocation, inputs, outputs)

        def argument(index, hint):
            annotation, arguments = _annotation(hint)
            return resolver(index, inputs[index].name, inputs[index].type, annotation, arguments)

        for p in self.parameters:
            hint = self.hints.get(p.name)
            if p.kind is p.VAR_POSITIONAL:
                spread = hint  # What is left in the end.
                continue
            if p.kind is p.VAR_KEYWORD:
                keyword += [(name, argument(index, hint)) for name, index in free.items()]
                free = {}
                continue
            if p.name in free:
                make = argument(free.pop(p.name), hint)
            elif _annotation(hint)[0] is Context or (p.name == "ctx" and hint in (None, p.empty)):
                make = context
            elif p.default is p.empty:
                missing.append(p.name)
                continue
            elif p.kind is p.KEYWORD_ONLY:
                continue
            else:
                # Its default keeps the place, so that later parameters stay in theirs.
                make = _constant(p.default)
            if p.kind is p.KEYWORD_ONLY:
                keyword.append((p.name, make))
            else:
                positional.append(make)
        if any(p.kind is p.VAR_POSITIONAL for p in self.parameters):
            positional += [argument(index, spread) for index in free.values()]
            free = {}
        if missing:
            raise BindError(
                f"{self.name}() needs {', '.join(map(repr, missing))}{nearest(missing[0], names)}, which the step "
                f"does not give: its inputs are {', '.join(names) or 'none'}. Rename one side, or give the "
                f"parameter a default"
            )
        if free:
            extra = ", ".join(map(repr, free))
            raise BindError(
                f"the step gives input {extra}, which {self.name}() does not take: add the parameter, or **inputs"
            )
        return Plan(self, outputs, positional, keyword)


def _constant(value):
    return lambda _invocation: value


class Plan:
    """How to call the handler for every invocation of one shape."""

    __slots__ = ("_function", "_is_async", "_keyword", "_outputs", "_positional")

    def __init__(self, handler, outputs, positional, keyword):
        self._function = handler.function
        self._is_async = handler.is_async
        self._outputs = outputs
        self._positional = positional
        self._keyword = keyword

    def call(self, invocation):
        """Wait for the inputs that are to be complete, call the function, write what it returns."""
        arguments = [make(invocation) for make in self._positional]
        keyword = {name: make(invocation) for name, make in self._keyword}
        result = self._function(*arguments, **keyword)
        if self._is_async:
            import asyncio  # Few handlers need this large module.

            result = asyncio.run(result)
        if result is not None:
            self._outputs.deliver(invocation, result)
