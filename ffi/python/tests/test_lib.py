"""The ctypes binding against a stand-in of libdflow, compiled from ``standin.c`` over the real headers."""

import contextlib
import ctypes
import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import dflow
from dflow import _lib, _worker
from dflow._bind import Handler

HERE = os.path.dirname(os.path.abspath(__file__))
INCLUDE = os.path.join(HERE, "..", "..", "include")
BYTES, TEXT, JSON = 0, 1, 2
ONE, LIST = 0, 1
PENDING, READY, ABSENT = 0, 1, 2
PLAIN, STREAM, MANY = 0, 1, 2


class StandIn(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cc = shutil.which("cc")
        if cc is None:
            print("SKIP the ctypes binding: there is no C compiler")
            raise unittest.SkipTest("no C compiler")
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder, cls.path = folder.name, os.path.join(folder.name, "libstandin.so")
        command = [cc, "-shared", "-fPIC", "-Wall", "-Werror", "-I", INCLUDE, "-o", cls.path]
        subprocess.run([*command, os.path.join(HERE, "standin.c")], check=True)
        cls.library = _lib.Library(cls.path)
        cls.standin = ctypes.CDLL(cls.path)
        cls.standin.standin_log.restype = ctypes.c_char_p
        cls.standin.standin_worker.restype = ctypes.c_void_p
        cls.standin.standin_reset.argtypes = [ctypes.c_int, ctypes.c_uint64]
        port = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32]
        cls.standin.standin_input.argtypes = [*port, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint64]
        cls.standin.standin_output.argtypes = [*port, ctypes.c_uint64]

    def run_one(self, function, inputs=(), outputs=(), items=0, refuse=0, calls=1):
        """The lines the stand-in recorded while a worker ran ``function``."""
        standin = self.standin
        standin.standin_reset(calls, 1 << 60)
        for name, type_, shape, state, data in inputs:
            standin.standin_input(name, type_, shape, state, data, len(data))
        for port in outputs:
            standin.standin_output(*port)
        standin.standin_list(items)
        standin.standin_refuse(refuse)
        with contextlib.redirect_stderr(io.StringIO()) as self.stderr:
            _worker.run(_lib.Worker(self.library, standin.standin_worker()), Handler(function))
        return standin.standin_log().decode().splitlines()


OUT = (b"out", BYTES, PLAIN, 0)


class Calls(StandIn):
    def test_the_description_of_an_invocation(self):
        def f(ctx, **inputs):
            return f"{ctx.run} {ctx.workflow} {ctx.step} {ctx.item} {ctx.attempt} {ctx.threads} {ctx.timeout_ms}"

        log = self.run_one(f, [(b"a", BYTES, ONE, READY, b"x")], [OUT])
        self.assertEqual(log, [f"put 0 {1 << 60} flow step-name 2 3 4 5000", "ok 0 "])

    def test_inputs_of_every_state(self):
        def f(ready, pending, absent, items):
            with self.assertRaises(TypeError):
                ready[0] = 1
            return ready.tobytes() + pending.encode() + str(absent).encode() + b"".join(items) + b"%d" % len(items)

        inputs = [
            (b"ready", BYTES, ONE, READY, b"R"),
            (b"pending", TEXT, ONE, PENDING, b"P"),
            (b"absent", JSON, ONE, ABSENT, b""),
            (b"items", BYTES, LIST, PENDING, b"xyz"),
        ]
        self.assertEqual(self.run_one(f, inputs, [OUT], items=3), ["put 0 RPNonexyz3", "ok 0 "])

    def test_streams(self):
        def f(s: dflow.Stream, ready: dflow.Stream):
            seen.extend([s.read(2), s.read(), s.read(1), ready.read(2), ready.read(), ready.read(1)])

        seen = []
        inputs = [(b"s", BYTES, ONE, PENDING, b"abcde"), (b"ready", BYTES, ONE, READY, b"12345")]
        log = self.run_one(f, inputs)
        self.assertEqual(seen, [b"ab", b"cde", b"", b"12", b"345", b""])
        self.assertEqual(log, ["read 0 ", "read 2 ", "read 5 ", "ok 0 "])

    def test_buffers_of_every_kind_are_put(self):
        for value in (b"abc", bytearray(b"abc"), memoryview(b"abc"), (ctypes.c_char * 3)(b"a", b"b", b"c")):
            self.assertEqual(self.run_one(lambda: value, [], [OUT]), ["put 0 abc", "ok 0 "])
        self.assertEqual(self.run_one(lambda: memoryview(b"a-b-c")[::2], [], [OUT]), ["seal 0 abc", "ok 0 "])
        self.assertEqual(self.run_one(lambda: memoryview(b"abc")[3::2], [], [OUT]), ["seal 0 ", "ok 0 "])

    def test_numpy_arrays_are_put_whatever_their_layout(self):
        try:
            import numpy
        except ImportError:
            print("SKIP numpy buffers: numpy is not installed")
            return
        square = numpy.frombuffer(b"abcdef", dtype=numpy.uint8).reshape(2, 3)
        self.assertEqual(self.run_one(lambda: square, [], [OUT]), ["put 0 abcdef", "ok 0 "])
        self.assertEqual(self.run_one(lambda: square.T, [], [OUT]), ["seal 0 adbecf", "ok 0 "])

    def test_reserve_commit_seal(self):
        def f(ctx):
            buffer = ctx.reserve("out", 10)
            buffer.view[:5] = b"hello"
            buffer.commit(2)
            buffer.seal(5)

        self.assertEqual(self.run_one(f, [], [OUT]), ["commit 0 he", "seal 0 hello", "ok 0 "])

    def test_stream_output_follows_the_generator(self):
        log = self.run_one(lambda: iter(["ab", "cd"]), [], [(b"out", TEXT, STREAM, 0)])
        self.assertEqual(log, ["commit 0 ab", "commit 0 abcd", "seal 0 abcd", "ok 0 "])

    def test_ends(self):
        def fail():
            raise KeyError("nul \0 inside")

        log = self.run_one(fail)
        self.assertEqual(log[0], r"KeyError 0 'nul \x00 inside'")

        class Nul(Exception):
            def __str__(self):
                return "a\0b"

        def raw():
            raise Nul

        self.assertEqual(self.run_one(raw)[0], r"Nul 0 a\0b")
        self.assertEqual(self.run_one(lambda: sys.exit(75)), ["exit 75 "])

    def test_refusals_become_exceptions(self):
        expected = {-4: "PutTwice", -5: "OutputTooLarge", -7: "OutputRefused", -8: "InputFailed", -9: "TooManyItems"}
        expected.update(
            {-1: "Misuse", -2: "NoSuchPort", -3: "Misuse", -6: "Misuse", -11: "NodeGone", -99: "DflowError"}
        )
        for code, name in expected.items():
            log = self.run_one(lambda: b"x", [], [OUT], refuse=code)
            self.assertEqual(log[1], f"{name} 0 the stand-in refuses", code)


class WithoutOptionalCalls(StandIn):
    def test_an_older_library_still_runs_functions(self):
        library = _lib.Library(self.path)
        library.worker_taint = library.worker_end_exit = None
        saved, type(self).library = type(self).library, library
        try:
            kept = []
            self.assertEqual(self.run_one(lambda a: kept.append(a), Views.INPUT), ["ok 0 "])
            self.assertEqual(self.run_one(lambda: sys.exit(75)), ["SystemExit 0 the function exited with status 75"])
        finally:
            type(self).library = saved


class Views(StandIn):
    INPUT = [(b"a", BYTES, ONE, READY, b"shared")]

    def test_a_kept_view_taints_the_process(self):
        kept = []
        log = self.run_one(lambda a: kept.append(a[1:3]), self.INPUT, calls=2)
        self.assertEqual(log, ["taint 0 ", "ok 0 "] * 2)
        self.assertIn("copy what outlives", self.stderr.getvalue())

    def test_views_in_cycles_and_tracebacks_do_not(self):
        def cycle(a):
            ring = [a]
            ring.append(ring)

        def fail(a):
            raise ValueError(a)

        self.assertEqual(self.run_one(cycle, self.INPUT), ["ok 0 "])
        self.assertEqual(self.run_one(fail, self.INPUT)[0].split()[0], "ValueError")
        self.assertEqual(self.stderr.getvalue(), "")

    def test_inputs_cannot_be_used_afterwards(self):
        kept = []

        def f(a: dflow.Stream, ctx):
            kept[:] = [a, ctx]

        self.run_one(f, self.INPUT)
        for use in (kept[0].read, lambda: kept[1].workflow, lambda: kept[1].get("a")):
            with self.assertRaisesRegex(dflow.Misuse, "has ended"):
                use()


class Zygote(StandIn):
    def zygote(self, text, handler="handler.py:f"):
        with open(os.path.join(self.folder, "handler.py"), "w") as file:
            file.write(text)
        environment = dict(os.environ, PYTHONPATH=os.path.dirname(HERE))
        flags = ["--socket", "0", "--runtime", "python", "--handler", handler, "--path", self.folder, "--"]
        command = [sys.executable, "-m", "dflow._zygote", self.path, *flags]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def test_it_loads_forks_and_works(self):
        done = self.zygote("import os\nprint('loading', os.getpid())\ndef f():\n    print('working', os.getpid())\n")
        said = sorted(done.stdout.splitlines())
        self.assertEqual((done.returncode, done.stderr, len(said)), (0, "", 3), done)
        self.assertEqual([line.split()[0] for line in said], ["forked:", "loading", "working"])
        self.assertNotEqual(said[1].split()[1], said[2].split()[1])

    def test_a_failed_load_is_reported_with_its_traceback(self):
        done = self.zygote("import nowhere_at_all")
        self.assertEqual(done.returncode, 1)
        self.assertTrue(
            done.stdout.startswith("failed: ModuleNotFoundError: No module named 'nowhere_at_all'\nTraceback")
        )
        self.assertIn("handler.py", done.stdout)
        self.assertNotIn("_load.py", done.stdout)
        done = self.zygote("", handler="nowhere_at_all:f")
        self.assertEqual(done.stdout, "failed: ModuleNotFoundError: No module named 'nowhere_at_all'\n")
        done = self.zygote("def g(): pass")
        self.assertIn("failed: BindError: handler.py has no function 'f'", done.stdout)

    def test_exit_while_loading_is_a_failed_load(self):
        done = self.zygote("raise SystemExit(0)")
        self.assertEqual((done.returncode, done.stdout.split("\n")[0]), (1, "failed: SystemExit: 0"))

    def test_a_fork_that_fails_tells_its_errno(self):
        done = self.zygote(
            "import os, errno\ndef f(): pass\ndef no(): raise OSError(errno.EAGAIN, 'no')\nos.fork = no\n"
        )
        self.assertEqual((done.returncode, done.stdout), (0, f"forked: {errno.EAGAIN}\n"))

    def test_threads_of_the_module_are_warned_of(self):
        text = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\ndef f(): pass\n"
        self.assertIn("starts threads while it is imported", self.zygote(text).stderr)


if __name__ == "__main__":
    unittest.main()
