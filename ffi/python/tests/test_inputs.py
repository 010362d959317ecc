"""How inputs reach a function: types, annotations, lists and streams."""

import functools
import io
import threading
import unittest
from typing import List, Optional

import dflow
from dflow._ports import BYTES, JSON, TEXT

from .fake import Growing, ManyFake, Null, call


def seen_by(function, *inputs):
    """What ``function`` returned when called with these inputs."""
    seen = []

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        seen.append(function(*args, **kwargs))

    call(wrapper, inputs)
    return seen[0]


class Types(unittest.TestCase):
    def test_each_port_type_has_its_natural_form(self):
        def f(raw, words, doc):
            return raw, words, doc

        raw, words, doc = seen_by(
            f, ("raw", BYTES, b"\x00x"), ("words", TEXT, "é".encode()), ("doc", JSON, b'{"a":[1]}')
        )
        self.assertIsInstance(raw, memoryview)
        self.assertTrue(raw.readonly)
        self.assertEqual((bytes(raw), words, doc), (b"\x00x", "é", {"a": [1]}))

    def test_the_annotation_decides(self):
        def f(a: bytes, b: bytearray, c: str, d: memoryview, e: "bytes"):
            return a, b, c, d, e

        ports = [(name, type_, b"[1]") for name, type_ in zip("abcde", (BYTES, BYTES, BYTES, JSON, JSON))]
        a, b, c, d, e = seen_by(f, *ports)
        self.assertEqual((a, b, c, bytes(d), e), (b"[1]", bytearray(b"[1]"), "[1]", b"[1]", b"[1]"))
        self.assertEqual([type(v) for v in (a, b, c, d, e)], [bytes, bytearray, str, memoryview, bytes])

    def test_a_skipped_optional_input_is_none(self):
        def f(a, b: dflow.Stream, c: dflow.Many[bytes], d: dflow.Lazy[str], e: Optional[bytes]):
            return a, b, c, d.get(), e

        nulls = seen_by(f, *[(name, BYTES, Null()) for name in "abcde"])
        self.assertEqual(nulls, (None,) * 5)

    def test_undecodable_input_names_the_input(self):
        for type_, value, hint in ((TEXT, b"\xff", "UTF-8"), (JSON, b"{", "does not parse")):
            with self.assertRaisesRegex(dflow.DecodeError, f"'page'.*{hint}"):
                seen_by(lambda page: page, ("page", type_, value))

    def test_numpy_array_shares_the_memory(self):
        try:
            import numpy
        except ImportError:
            print("SKIP numpy input: numpy is not installed")
            return

        def f(a: numpy.ndarray):
            return a

        array = seen_by(f, ("a", BYTES, bytes([1, 2, 3])))
        self.assertEqual(array.tolist(), [1, 2, 3])
        self.assertFalse(array.flags.writeable or array.flags.owndata)


class Binding(unittest.TestCase):
    def test_parameters_of_every_kind(self):
        def f(a, /, b, *, c, d=4, **rest):
            return a, b, c, d, rest

        inputs = [(n, TEXT, n.encode()) for n in ("c", "b", "a", "x-y")]
        self.assertEqual(seen_by(f, *inputs), ("a", "b", "c", 4, {"x_y": "x-y"}))

    def test_star_parameters_take_the_rest_in_order(self):
        inputs = [(n, TEXT, n.encode()) for n in ("p", "q", "r")]
        self.assertEqual(seen_by(lambda q, *rest: (q, rest), *inputs), ("q", ("p", "r")))

    def test_missing_and_extra_inputs_say_what_to_do(self):
        with self.assertRaisesRegex(dflow.BindError, r"needs 'texts' \(did you mean 'text'\?\).*inputs are text"):
            seen_by(lambda texts: 0, ("text", TEXT, b""))
        with self.assertRaisesRegex(dflow.BindError, r"input 'extra'.*add the parameter"):
            seen_by(lambda text: 0, ("text", TEXT, b""), ("extra", TEXT, b""))

    def test_unresolvable_hints_do_not_cost_the_others(self):
        def f(a: "Nowhere", b: dflow.Lazy):  # noqa: F821
            return a, b

        a, b = seen_by(f, ("a", TEXT, b"x"), ("b", TEXT, b"y"))
        self.assertEqual((a, b.get()), ("x", "y"))

    def test_context_by_name_and_by_annotation(self):
        def f(ctx, other: dflow.Context):
            return ctx.run, other.step, other.item, ctx.attempt, ctx.workflow, ctx.inputs

        self.assertEqual(seen_by(f), (7, "count", 3, 1, "flow", []))
        self.assertEqual(seen_by(lambda ctx: ctx, ("ctx", TEXT, b"an input")), "an input")

    def test_context_reads_inputs_by_name(self):
        def f(ctx, **_):
            with self.assertRaisesRegex(dflow.NoSuchPort, "did you mean 'words'"):
                ctx.get("word")
            return ctx.get("words"), ctx.get("words", bytes), ctx.stream("words").read(), ctx.lazy("words").get()

        self.assertEqual(seen_by(f, ("words", TEXT, b"w")), ("w", b"w", b"w", "w"))

    def test_async_handlers_and_callable_objects(self):
        class Handler:
            def __call__(self, n: bytes):
                return n

        out = call(Handler(), [("n", JSON, b"1")], [("out", BYTES, 0)])
        self.assertEqual(out.put_values, {"out": b"1"})

        async def f(n):
            return n + 1

        self.assertEqual(call(f, [("n", JSON, b"1")], [("out", JSON, 0)]).put_values, {"out": b"2"})


class Lists(unittest.TestCase):
    def test_items_come_before_the_list_ends(self):
        items = ManyFake()
        items.add(b"1")
        met = threading.Event()

        def f(parts):
            iterator = iter(parts)
            first = next(iterator)
            met.set()
            return [first, *iterator], len(parts), parts[-1], parts[0:2], bool(parts)

        def produce():
            self.assertTrue(met.wait(10), "the first item did not reach the function before the list ended")
            items.add(b"2")
            items.add(b"3")
            items.end()

        producer = threading.Thread(target=produce)
        producer.start()
        got = seen_by(f, ("parts", JSON, items))
        producer.join()
        self.assertEqual(got, ([1, 2, 3], 3, 3, [1, 2], True))

    def test_sequence_rules(self):
        many = seen_by(lambda parts: parts, ("parts", TEXT, ManyFake([b"a", b"b", b"c", b"d"])))
        plain = ["a", "b", "c", "d"]
        for cut in (slice(None), slice(1, 3), slice(3, 0, -1), slice(-2, None), slice(0, 9), slice(2, 1), slice(9, 12)):
            self.assertEqual(many[cut], plain[cut], cut)
        for index in (4, -5):
            with self.assertRaises(IndexError):
                many[index]
        self.assertEqual(list(reversed(many)), plain[::-1])
        self.assertIn("c", many)

    def test_a_bounded_slice_does_not_wait_for_the_length(self):
        items = ManyFake()
        items.add(b"a")
        items.add(b"b")
        many = seen_by(lambda parts: parts, ("parts", TEXT, items))
        self.assertEqual((many[0:2], many[0:0], many[1:2:3]), (["a", "b"], [], ["b"]))

    def test_annotations_of_items(self):
        def f(a: dflow.Many[bytes], b: List[str], c: dflow.Many[dflow.Stream], d: list):
            return list(a), b, [s.read() for s in c], d

        inputs = [(n, t, ManyFake([b"1", b"2"])) for n, t in zip("abcd", (JSON, BYTES, BYTES, JSON))]
        self.assertEqual(seen_by(f, *inputs), ([b"1", b"2"], ["1", "2"], [b"1", b"2"], [1, 2]))

    def test_json_null_is_an_item_and_not_the_end(self):
        self.assertEqual(list(seen_by(lambda p: p, ("p", JSON, ManyFake([b"null", b"1"])))), [None, 1])

    def test_an_empty_item_is_not_the_end(self):
        def f(p: dflow.Many[dflow.Stream]):
            return [s.read() for s in p]

        self.assertEqual(seen_by(f, ("p", BYTES, ManyFake([b"", b"x", b""]))), [b"", b"x", b""])

    def test_empty_list(self):
        many = seen_by(lambda p: p, ("p", JSON, ManyFake([])))
        self.assertEqual((list(many), len(many), bool(many), many[:]), ([], 0, False, []))

    def test_wrong_shape_is_explained(self):
        def one(p: dflow.Many):
            return p

        def several(p: dflow.Stream):
            return p

        with self.assertRaisesRegex(dflow.BindError, "is one object"):
            seen_by(one, ("p", BYTES, b""))
        with self.assertRaisesRegex(dflow.BindError, r"Many\[dflow.Stream\]"):
            seen_by(several, ("p", BYTES, ManyFake([])))


def stream(value):
    def f(s: dflow.Stream):
        return s

    return seen_by(f, ("s", BYTES, value))


class Streams(unittest.TestCase):
    def test_chunks_arrive_while_the_object_grows(self):
        growing = Growing()
        growing.add(b"one")
        reader, got = stream(growing), []
        for chunk in reader:
            got.append(bytes(chunk))
            if len(got) == 1:
                growing.add(b"two")
                growing.end()
        self.assertEqual(got, [b"one", b"two"])

    def test_read_blocks_for_all_it_was_asked(self):
        growing = Growing()
        growing.add(b"ab")
        reader = stream(growing)
        later = threading.Timer(0.02, lambda: (growing.add(b"cd"), growing.end()))
        later.start()
        self.assertEqual((reader.read(3), reader.read(3), reader.read(3)), (b"abc", b"d", b""))
        later.join()

    def test_it_is_a_file(self):
        data = b"first\nsecond line\n\nlast"
        self.assertEqual(list(stream(data).lines()), data.splitlines(keepends=True))
        self.assertEqual(list(stream(data).lines("ascii")), data.decode().splitlines(keepends=True))
        self.assertEqual(io.BufferedReader(stream(data)).read(), data)
        reader = stream(data)
        target = bytearray(5)
        self.assertEqual((reader.readinto(target), target, reader.tell()), (5, b"first", 5))
        self.assertEqual((reader.seek(-4, 2), reader.read(), reader.seek(1), reader.read(4)), (19, b"last", 1, b"irst"))
        self.assertEqual((reader.read(0), reader.seek(3, 1), reader.readline()), (b"", 8, b"cond line\n"))
        self.assertEqual([len(c) for c in stream(data).chunks(10)], [10, 10, 3])
        self.assertEqual(
            (stream(data).readline(3), stream(data).readline(0), stream(data).readall()), (b"fir", b"", data)
        )
        self.assertEqual(stream(b"").read(), b"")

    def test_long_lines_cross_the_window(self):
        lines = [b"x" * 20_000 + b"\n", b"y" * 8192 + b"\n", b"z" * 8191 + b"\n", b"end"]
        self.assertEqual(list(stream(b"".join(lines)).lines()), lines)

    def test_a_line_waits_for_its_end(self):
        growing = Growing()
        growing.add(b"ha")
        later = threading.Timer(0.02, lambda: growing.add(b"lf\nrest"))
        later.start()
        self.assertEqual(stream(growing).readline(), b"half\n")
        later.join()

    def test_lazy_waits_only_when_asked(self):
        growing = Growing()

        def f(later: dflow.Lazy[bytes], plain):
            growing.add(b"now")
            growing.end()
            return later.get(), later.get() is later.get()

        self.assertEqual(seen_by(f, ("later", BYTES, growing), ("plain", JSON, b"0")), (b"now", True))


if __name__ == "__main__":
    unittest.main()
