"""Finds and imports the handler that a workflow names."""

import importlib
import importlib.util
import os
import sys

from ._errors import BindError, nearest


def _import_file(path):
    if not os.path.isfile(path):
        raise BindError(f"the handler's file {path} does not exist")
    stem = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # A file called like a library module (`json.py`) must not replace that module for everyone else.
    library = getattr(sys, "stdlib_module_names", sys.builtin_module_names)
    name = f"dflow_handler_{stem}" if stem in sys.modules or stem in library else stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError(f"{path} is not a Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    # Registered first, so that what the file defines can be found by its module's name (pickle, dataclasses).
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(handler, folders):
    """The callable that ``handler`` names: ``file.py:function`` or ``package.module:function``.

    ``folders`` go in front of ``sys.path``; a file is looked for in them, then in the current folder. Raises what
    the import raises, and BindError if there is no such function.
    """
    place, colon, name = handler.rpartition(":")
    if not colon or not place or not name:
        raise BindError(f"handler {handler!r} is not of the form file.py:function or module:function")
    folders = [os.path.abspath(folder) for folder in folders]
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    if place.endswith(".py") or "/" in place:
        candidates = [os.path.join(folder, place) for folder in (*folders, os.getcwd())]
        module = _import_file(next(filter(os.path.isfile, candidates), candidates[0]))
    else:
        module = importlib.import_module(place)
    target = module
    for part in name.split("."):
        if not hasattr(target, part):
            callables = [n for n, v in vars(target).items() if callable(v) and not n.startswith("_")]
            raise BindError(f"{place} has no function {name!r}{nearest(part, callables)}")
        target = getattr(target, part)
    if not callable(target):
        raise BindError(f"{handler} names a value of type {type(target).__name__}, not a function")
    return target
