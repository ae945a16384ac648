"""Notes when functions run, and for how long, in every Python process that is started with this folder in PYTHONPATH.

Ray's processes inherit PYTHONPATH, so nothing in the package has to know of it. ``WATCH`` is JSON, module to a list of
[function, kind, name]; ``WATCH_FILE`` gets a line of JSON for each note:

* ``begin``, ``end``: the moment at which a call begins or ends. ``first``: when a generator gives its first item.
* ``time``: the calls, and the seconds and CPU seconds of their thread, without those of others that it calls.
* ``flush``: the sums of ``time`` so far in this process, with its CPU seconds, are noted after each call.
"""

import functools
import inspect
import json
import os
import sys
import threading
import time
from collections import defaultdict

WATCH = json.loads(os.environ.get("WATCH", "{}"))
TAKEN = defaultdict(lambda: [0, 0.0, 0.0])
LOCK = threading.Lock()


class Stack(threading.local):
    """Seconds and CPU seconds that the calls of a thread have spent in calls below them."""

    def __init__(self):
        self.below = []


STACK = Stack()


def note(name, **facts):
    line = json.dumps({"at": time.time(), "pid": os.getpid(), "name": name, **facts}) + "\n"
    with open(os.environ["WATCH_FILE"], "a") as file:
        file.write(line)


class Timer:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        STACK.below.append([0.0, 0.0])
        self.began = time.perf_counter(), time.thread_time()

    def __exit__(self, *_):
        taken = time.perf_counter() - self.began[0], time.thread_time() - self.began[1]
        below = STACK.below.pop()
        if STACK.below:
            STACK.below[-1] = [whole + more for whole, more in zip(STACK.below[-1], taken, strict=True)]
        with LOCK:
            sums = TAKEN[self.name]
            sums[0] += 1
            sums[1] += taken[0] - below[0]
            sums[2] += taken[1] - below[1]


def watch(function, kind, name):
    """Return a function in the place of another one."""

    def call(*args, **options):
        if kind == "begin":
            note(name)
        try:
            if kind != "time":
                return function(*args, **options)
            with Timer(name):
                return function(*args, **options)
        finally:
            if kind == "end":
                note(name)
            elif kind == "flush":
                with LOCK:
                    note(name, cpu_s=time.process_time(), taken=dict(TAKEN))

    def give(*args, **options):
        items = function(*args, **options)
        nothing = object()
        while True:
            with Timer(name):
                item = next(items, nothing)
            if item is nothing:
                return
            yield item

    def give_first(*args, **options):
        for index, item in enumerate(function(*args, **options)):
            if index == 0:
                note(name)
            yield item

    is_generator = inspect.isgeneratorfunction(function)
    chosen = give_first if kind == "first" else give if kind == "time" and is_generator else call
    return functools.wraps(function)(chosen)


class Loader:
    """Loads a module as another loader does, and puts what is watched into it."""

    def __init__(self, loader, name):
        self.loader, self.name = loader, name

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        for path, kind, name in WATCH[self.name]:
            owner = module
            *outer, last = path.split(".")
            for part in outer:
                owner = getattr(owner, part, None)
            if hasattr(owner, last):  # another version of the package may not have it
                setattr(owner, last, watch(getattr(owner, last), kind, name))

    def __getattr__(self, name):
        return getattr(self.loader, name)


class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in WATCH:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not cls else None
            if spec is not None:
                spec.loader = Loader(spec.loader, name)
                return spec
        return None


if WATCH:
    sys.meta_path.insert(0, Finder)
    note("interpreter")
