"""How what a function returns, yields and puts reaches its output ports."""

import array
import unittest

import dflow
from dflow._bind import Handler
from dflow._ports import BYTES, JSON, MANY, PLAIN, STREAM, TEXT

from .fake import FakeInvocation, call


def put_by(function, *outputs):
    """What a function without inputs left on its output ports."""
    return call(function, [], outputs).put_values


OUT = ("out", BYTES, PLAIN)


class Values(unittest.TestCase):
    def test_encodings(self):
        cases = [
            (BYTES, b"x", b"x"),
            (BYTES, memoryview(b"xyz")[::2], b"xz"),
            (BYTES, bytearray(b"x"), b"x"),
            (BYTES, array.array("H", [1, 2]), array.array("H", [1, 2]).tobytes()),
            (BYTES, "é", "é".encode()),
            (BYTES, {"out": {"a": 1}}, b'{"a":1}'),
            (BYTES, [1, None], b"[1,null]"),
            (BYTES, True, b"true"),
            (TEXT, "é", "é".encode()),
            (TEXT, 5, b"5"),
            (TEXT, b"raw", b"raw"),
            (JSON, "é", '"é"'.encode()),
            (JSON, b'{"done":1}', b'{"done":1}'),
            (JSON, (1, 2.5), b"[1,2.5]"),
            (JSON, {"out": 1}, b'{"out":1}'),
            (JSON, False, b"false"),
        ]
        for type_, value, expected in cases:
            self.assertEqual(put_by(lambda: value, ("out", type_, PLAIN)), {"out": expected}, (type_, value))

    def test_what_cannot_be_encoded_says_so(self):
        cases = [
            (BYTES, object(), "takes bytes"),
            (TEXT, {"out": {"a": 1}}, "takes text"),
            (JSON, {1, 2}, "no JSON form"),
            (JSON, float("nan"), "port 'out' takes json"),
        ]
        for type_, value, hint in cases:
            with self.assertRaisesRegex(dflow.EncodeError, hint):
                put_by(lambda: value, ("out", type_, PLAIN))

    def test_numpy(self):
        try:
            import numpy
        except ImportError:
            print("SKIP numpy outputs: numpy is not installed")
            return
        square = numpy.arange(6, dtype=numpy.int32).reshape(2, 3)
        self.assertEqual(put_by(lambda: square, OUT), {"out": square.tobytes()})
        self.assertEqual(
            put_by(lambda: {"n": numpy.int64(3), "l": square[0]}, ("out", JSON, PLAIN)), {"out": b'{"n":3,"l":[0,1,2]}'}
        )


class Spreading(unittest.TestCase):
    A, B = ("a", TEXT, PLAIN), ("b", JSON, PLAIN)

    def test_dict_by_name_tuple_by_order(self):
        expected = {"a": b"x", "b": b"1"}
        self.assertEqual(put_by(lambda: {"b": 1, "a": "x"}, self.A, self.B), expected)
        self.assertEqual(put_by(lambda: ("x", 1), self.A, self.B), expected)
        self.assertEqual(put_by(lambda: {"out": b"y"}, OUT), {"out": b"y"})

    def test_none_puts_nothing(self):
        self.assertEqual(put_by(lambda: None, OUT), {})
        self.assertEqual(put_by(lambda: {"a": "x", "b": None}, self.A, self.B), {"a": b"x"})

    def test_mistakes(self):
        with self.assertRaisesRegex(dflow.NoSuchPort, r"no output 'aa' \(did you mean 'a'\?\); its outputs: a, b"):
            put_by(lambda: {"aa": 1}, self.A, self.B)
        with self.assertRaisesRegex(dflow.EncodeError, "returned 3 values for 2 outputs"):
            put_by(lambda: (1, 2, 3), self.A, self.B)
        with self.assertRaisesRegex(dflow.EncodeError, "dict by name or a tuple"):
            put_by(lambda: "x", self.A, self.B)

    def test_no_outputs(self):
        ran = []

        def f():
            ran.append(1)
            yield

        self.assertEqual(put_by(f), {})
        self.assertEqual((put_by(lambda: 5), ran), ({}, [1]))


class Yielding(unittest.TestCase):
    def test_each_item_is_put_at_its_yield(self):
        seen = []

        def f(ctx):
            for i in range(3):
                yield i
                seen.append(len(ctx._invocation.put_values["items"]))

        self.assertEqual(put_by(f, ("items", JSON, MANY)), {"items": [b"0", b"1", b"2"]})
        self.assertEqual(seen, [1, 2, 3])

    def test_iterables_for_many(self):
        for value in ([b"a", b"b"], (b"a", b"b"), iter([b"a", b"b"]), {"items": [b"a", b"b"]}):
            self.assertEqual(put_by(lambda: value, ("items", BYTES, MANY)), {"items": [b"a", b"b"]})
        for value in (b"ab", "ab", 5):
            with self.assertRaisesRegex(dflow.EncodeError, "iterable of items"):
                put_by(lambda: value, ("items", BYTES, MANY))

    def test_a_stream_is_fed_chunk_by_chunk(self):
        def f():
            yield "ab"
            yield b""
            yield b"cd"

        out = call(f, [], [("out", BYTES, STREAM)])
        self.assertEqual((out.watermarks["out"], out.put_values["out"]), ([2, 4], b"abcd"))

    def test_room_of_a_stream(self):
        def chunks(n):
            return lambda: iter([b"x" * n])

        self.assertEqual(put_by(chunks(3), ("out", BYTES, STREAM, 3)), {"out": b"xxx"})
        with self.assertRaisesRegex(dflow.OutputTooLarge, "reached 4 bytes and may have 3.*max_size"):
            put_by(chunks(4), ("out", BYTES, STREAM, 3))
        self.assertEqual(put_by(chunks(0), ("out", BYTES, STREAM)), {"out": b""})

    def test_a_small_store_gives_a_stream_less_room(self):
        small = FakeInvocation([], [("out", BYTES, STREAM)])
        small.store_bytes = 1 << 20
        Handler(lambda: iter([b"ab"])).bind([], small.outputs()).call(small)
        self.assertEqual(small.put_values, {"out": b"ab"})
        small = FakeInvocation([], [("out", BYTES, STREAM)])
        small.store_bytes = 1
        with self.assertRaises(dflow.OutputRefused):
            Handler(lambda: iter([b"ab"])).bind([], small.outputs()).call(small)

    def test_chunks_of_a_plain_port_are_joined(self):
        out = call(lambda: iter([b"a", b"", "b"]), [], [OUT])
        self.assertEqual((out.put_values, out.watermarks), ({"out": b"ab"}, {}))

    def test_generator_beside_other_outputs(self):
        def f():
            yield b"1"
            return {"total": 1}

        outputs = [("total", JSON, PLAIN), ("items", BYTES, MANY)]
        self.assertEqual(put_by(f, *outputs), {"items": [b"1"], "total": b"1"})
        with self.assertRaisesRegex(dflow.EncodeError, "no single `many` or stream"):
            put_by(f, ("a", BYTES, PLAIN), ("b", BYTES, PLAIN))

    def test_a_generator_that_fails_leaves_the_stream_unsealed(self):
        def f():
            yield b"half"
            raise ValueError("broken")

        invocation = FakeInvocation([], [("out", BYTES, STREAM)])
        with self.assertRaisesRegex(ValueError, "broken"):
            Handler(f).bind([], invocation.outputs()).call(invocation)
        self.assertEqual(invocation.put_values, {})

    def test_json_port_is_one_document(self):
        with self.assertRaisesRegex(dflow.EncodeError, "one json document"):
            put_by(lambda: iter([1]), ("out", JSON, PLAIN))


class InPlace(unittest.TestCase):
    def test_reserve_fill_seal(self):
        def f(ctx):
            buffer = ctx.reserve("out", 8)
            buffer.view[:3] = b"abc"
            buffer.commit(3)
            buffer.seal(3)
            with self.assertRaises(dflow.Misuse):
                buffer.seal()

        self.assertEqual(put_by(f, OUT), {"out": b"abc"})

    def test_with_seals_unless_it_fails(self):
        def works(ctx):
            with ctx.reserve("out", 2) as buffer:
                buffer.view[:] = b"ok"
            self.assertEqual(len(buffer), 0)

        def fails(ctx):
            with self.assertRaises(KeyError), ctx.reserve("out", 2):
                raise KeyError

        self.assertEqual((put_by(works, OUT), put_by(fails, OUT)), ({"out": b"ok"}, {}))

    def test_many_items_can_be_reserved(self):
        def f(ctx):
            for text in (b"a", b"bb"):
                with ctx.reserve("items", len(text)) as buffer:
                    buffer.view[:] = text

        self.assertEqual(put_by(f, ("items", BYTES, MANY)), {"items": [b"a", b"bb"]})

    def test_writer_is_a_file(self):
        def f(ctx):
            with ctx.writer("out") as out:
                print("line", 1, file=out)
                out.write(memoryview(b"xy"))
                self.assertEqual((out.tell(), out.writable(), out.readable(), out.seekable()), (9, True, False, False))
            out.close()
            with self.assertRaisesRegex(ValueError, "closed"):
                out.write(b"z")

        self.assertEqual(put_by(f, OUT), {"out": b"line 1\nxy"})

    def test_writer_of_a_many_port_makes_one_item(self):
        def f(ctx):
            for word in ("a", "b"):
                with ctx.writer("items") as out:
                    out.write(word)
                    out.write("!")

        self.assertEqual(put_by(f, ("items", TEXT, MANY)), {"items": [b"a!", b"b!"]})

    def test_double_put_is_an_error(self):
        def f(ctx):
            ctx.put("out", b"1")
            return b"2"

        with self.assertRaises(dflow.PutTwice):
            put_by(f, OUT)


class Decorator(unittest.TestCase):
    def test_it_only_attaches_metadata(self):
        @dflow.function
        def bare(x):
            return x

        @dflow.function(cpu=2, outputs={"v": dflow.Stream}, retries=3)
        def full(x):
            return x

        self.assertEqual((bare(1), bare.__dflow__), (1, {}))
        self.assertEqual((full(2), full.__dflow__), (2, {"cpu": 2, "outputs": {"v": dflow.Stream}, "retries": 3}))


if __name__ == "__main__":
    unittest.main()
