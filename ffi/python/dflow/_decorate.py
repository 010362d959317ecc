"""The decorator. It only attaches metadata: a decorated function is called and tested like any other."""


def function(handler=None, *, outputs=None, cpu=None, memory=None, timeout=None, retries=None):
    """Declare what a step that uses this function may assume, beside the code itself.

    Usable bare (``@dflow.function``) or with arguments. ``outputs`` maps port names to types, ``dflow.Stream`` or
    ``dflow.Many[...]``; ``cpu`` is in cores, ``memory`` and ``timeout`` are written as in a workflow file
    ("512MiB", "5m"), ``retries`` counts tries beyond the first. The metadata is found in ``handler.__dflow__``.
    """
    given = {"outputs": outputs, "cpu": cpu, "memory": memory, "timeout": timeout, "retries": retries}
    metadata = {key: value for key, value in given.items() if value is not None}

    def attach(target):
        target.__dflow__ = metadata
        return target

    return attach if handler is None else attach(handler)
