"""Python functions for the tests."""

import os
import subprocess
import sys

import dflow


def upper(text):
    print("upper was called")
    return bytes(text).upper()


def lines(text):
    for line in bytes(text).splitlines(keepends=True):
        yield line


def join(parts: dflow.Many):
    return b"".join(bytes(part) for part in parts)


def raises(text):
    raise KeyError("no such thing")


def exits(text):
    sys.exit(75)


def two(text):
    return {"a": bytes(text), "b": bytes(len(text))}


def leaves_a_child(text):
    subprocess.Popen(["sleep", "60"])
    return b""


def pid(text):
    return str(os.getpid())
