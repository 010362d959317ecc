"""Finding the handler that a workflow names."""

import os
import sys
import tempfile
import unittest

import dflow
from dflow._load import load


class Load(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        path, modules = list(sys.path), set(sys.modules)

        def restore():
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                del sys.modules[name]

        self.addCleanup(restore)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def test_by_file_and_by_module(self):
        self.write("loadable_one.py", "def f(): return 'file'")
        self.write("loadable_pkg/inner.py", "class C:\n    @staticmethod\n    def f(): return 'module'")
        self.assertEqual(load("loadable_one.py:f", [self.folder])(), "file")
        self.assertEqual(load("loadable_pkg.inner:C.f", [self.folder])(), "module")

    def test_a_file_imports_its_neighbours(self):
        self.write("sub/loadable_two.py", "import loadable_helper\nf = loadable_helper.f")
        self.write("sub/loadable_helper.py", "def f(): return 2")
        self.assertEqual(load("sub/loadable_two.py:f", [self.folder])(), 2)

    def test_a_file_named_like_a_library_module_does_not_replace_it(self):
        self.write("json.py", "def f(): return 3")
        before = sys.modules["json"]
        self.assertEqual(load("json.py:f", [self.folder])(), 3)
        self.assertIs(sys.modules["json"], before)

    def test_what_the_module_defines_can_be_pickled(self):
        self.write("loadable_three.py", "import pickle\nclass P: pass\ndef f(): return pickle.loads(pickle.dumps(P()))")
        self.assertEqual(type(load("loadable_three.py:f", [self.folder])()).__name__, "P")

    def test_mistakes(self):
        self.write("loadable_four.py", "def transcode(): pass\nN = 1")
        self.write("loadable_five.py", "raise ValueError('at import')")
        cases = [
            ("loadable_four.py", dflow.BindError, "not of the form"),
            ("", dflow.BindError, "not of the form"),
            ("loadable_four.py:transcod", dflow.BindError, "did you mean 'transcode'"),
            ("loadable_four.py:N", dflow.BindError, "of type int, not a function"),
            ("nowhere.py:f", dflow.BindError, "does not exist"),
            ("nowhere_at_all:f", ModuleNotFoundError, "nowhere_at_all"),
            ("loadable_five.py:f", ValueError, "at import"),
        ]
        for handler, error, text in cases:
            with self.assertRaisesRegex(error, text, msg=handler):
                load(handler, [self.folder])


if __name__ == "__main__":
    unittest.main()
