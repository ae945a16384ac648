"""Freed memory goes back to the operating system, unless the user's environment says otherwise."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")

HEAP = """
import ctypes
from genai_ray.session.process import map_large_blocks

class Info(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = Info
map_large_blocks()
mapped = libc.mallinfo2().hblks
large = libc.malloc(2 << 20)
mapped = libc.mallinfo2().hblks - mapped
small = [libc.malloc(64 << 10) for _ in range(256)]
for block in small:
    libc.free(block)
print(mapped, libc.mallinfo2().keepcost)
"""


@pytest.mark.parametrize(
    ("environment", "is_mapped", "is_kept"),
    [
        ({}, True, False),
        ({"MALLOC_MMAP_THRESHOLD_": "33554432"}, False, False),
        ({"MALLOC_TRIM_THRESHOLD_": "134217728"}, True, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=134217728"}, False, True),
    ],
)
def test_a_limit_that_the_environment_sets_is_left_alone(environment, is_mapped, is_kept):
    done = subprocess.run(
        [sys.executable, "-c", HEAP], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    mapped, kept = map(int, done.stdout.split())
    assert mapped == is_mapped
    assert (kept > 8 << 20) == is_kept
