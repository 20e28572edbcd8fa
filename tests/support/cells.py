"""Cells that are run as IPython runs them, without a kernel."""

import linecache


class Cells:
    """One namespace, and each cell's source in linecache under a name of its own."""

    def __init__(self):
        self.namespace = {"__name__": "__main__", "get_ipython": self, "print": lambda *a: None}
        self.namespace["get_ipython"] = lambda: self
        self.count = 0

    def run_line_magic(self, *_):
        return None

    def run(self, source):
        self.count += 1
        name = f"/tmp/ipykernel_1/{id(self)}{self.count}.py"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), self.namespace)

    def __getitem__(self, name):
        return self.namespace[name]
