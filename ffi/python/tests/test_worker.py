"""The worker's loop: what it reports for each way a function can end."""

import contextlib
import io
import unittest

from dflow import _worker
from dflow._bind import Handler
from dflow._ports import BYTES, PLAIN, TEXT

from .fake import FakeInvocation


class FakeWorker:
    """Hands out the invocations it was made of and records how each ended."""

    def __init__(self, *invocations):
        self._invocations, self.ends, self.tainted = list(invocations), [], []

    def next(self):
        return self._invocations.pop(0) if self._invocations else None

    def taint(self):
        self.tainted.append(len(self.ends))

    def end(self):
        self.ends.append(("ok",))

    def end_error(self, name, message):
        self.ends.append(("error", name.decode(), message.decode()))

    def end_exit(self, code):
        self.ends.append(("exit", code))


def end_of(function, inputs=(), outputs=()):
    worker = FakeWorker(FakeInvocation(inputs, outputs))
    _worker.run(worker, Handler(function))
    (end,) = worker.ends
    return end


class Ends(unittest.TestCase):
    def test_ok(self):
        self.assertEqual(end_of(lambda: None), ("ok",))

    def test_an_exception_brings_its_class_its_text_and_the_users_traceback(self):
        class Broken(Exception):
            pass

        def f():
            raise Broken("disk on fire")

        how, name, message = end_of(f)
        self.assertEqual((how, name), ("error", "Broken"))
        self.assertTrue(message.startswith("disk on fire\nTraceback"), message)
        self.assertIn("test_worker.py", message)
        self.assertNotIn("_bind.py", message)

    def test_a_generators_exception_is_the_functions(self):
        def f():
            yield b"1"
            raise KeyError("k")

        how, name, message = end_of(f, [], [("out", BYTES, 2)])
        self.assertEqual((how, name), ("error", "KeyError"))
        self.assertIn("in f", message)

    def test_mistakes_at_the_border_have_no_traceback(self):
        how, name, message = end_of(lambda a: 0)
        self.assertEqual((how, name), ("error", "BindError"))
        self.assertNotIn("Traceback", message)

    def test_memory_errors_keep_their_name_in_subclasses(self):
        class ArrayMemoryError(MemoryError):
            pass

        def f():
            raise ArrayMemoryError("1 TiB")

        self.assertEqual(end_of(f)[1], "MemoryError")

    def test_sys_exit(self):
        cases = [(None, ("ok",)), (0, ("ok",)), (75, ("exit", 75)), (-1, ("exit", 255)), ("x", ("error", "SystemExit"))]
        for code, expected in cases:

            def f():
                raise SystemExit(code)

            self.assertEqual(end_of(f)[:2], expected, code)

    def test_a_long_error_is_clipped_to_what_a_message_holds(self):
        def f(n=0):
            if n < 500:
                f(n + 1)
            raise ValueError("é" * 10_000)

        message = end_of(f)[2].encode()
        self.assertLess(len(message), _worker.MESSAGE_BYTES_MAX + _worker.TRACEBACK_BYTES_MAX + 100)
        self.assertIn("[...]", message.decode())

    def test_an_exception_that_cannot_be_printed(self):
        class Mute(Exception):
            def __str__(self):
                raise RuntimeError

        def f():
            raise Mute

        how, name, message = end_of(f)
        self.assertEqual((how, name), ("error", "Mute"))
        self.assertIn("RuntimeError", message)

    def test_output_is_flushed_before_the_end_is_reported(self):
        class Stream(io.StringIO):
            flushed = ""

            def flush(self):
                Stream.flushed = self.getvalue()

        with contextlib.redirect_stdout(Stream()):
            end_of(lambda: print("hello"))
        self.assertEqual(Stream.flushed, "hello\n")


class Loop(unittest.TestCase):
    def test_a_plan_is_made_once_for_each_shape(self):
        made = []

        class Counting(Handler):
            def bind(self, inputs, outputs):
                made.append([port.name for port in inputs])
                return super().bind(inputs, outputs)

        one = [FakeInvocation([("a", TEXT, b"1")], [("out", TEXT, PLAIN)], shape=1) for _ in range(3)]
        two = FakeInvocation([("b", TEXT, b"2")], [("out", TEXT, PLAIN)], shape=2)
        worker = FakeWorker(one[0], two, *one[1:])
        _worker.run(worker, Counting(lambda **inputs: "".join(inputs.values())))
        self.assertEqual(made, [["a"], ["b"]])
        self.assertEqual([i.put_values["out"] for i in (*one, two)], [b"1", b"1", b"1", b"2"])

    def test_an_error_does_not_end_the_worker(self):
        worker = FakeWorker(FakeInvocation(), FakeInvocation())
        turns = iter((ZeroDivisionError("first"), None))

        def f():
            error = next(turns)
            if error:
                raise error

        _worker.run(worker, Handler(f))
        self.assertEqual([end[0] for end in worker.ends], ["error", "ok"])

    def test_kept_views_taint_the_process(self):
        class Kept(FakeInvocation):
            def close(self):
                return True

            def views_alive(self):
                return self.shape == 2

        worker = FakeWorker(Kept(shape=1), Kept(shape=2))
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            _worker.run(worker, Handler(lambda: None))
        self.assertEqual((worker.ends, worker.tainted), ([("ok",), ("ok",)], [1]))
        self.assertIn("kept a view", stderr.getvalue())


if __name__ == "__main__":
    unittest.main()
