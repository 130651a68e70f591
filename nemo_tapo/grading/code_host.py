"""Run inside the sandbox of a code answer: this one file, with the standard library alone, by a bare interpreter.

    python -I -S code_host.py program FILE      the program, with its own standard input and output
    python -I -S code_host.py answer FILE       its functions: a call a line on standard input, a value a line back
    python -I -S code_host.py tests             assert tests, whose calls of the answer go out as lines and come back

The first two run code of the model and the last one code of the data set, so that neither decides: a process with an
answer gives values and nothing else, and the verdict on them comes from another process (grading/code_tests.py).
Values travel as JSON with their types, and arrive as plain data that has no methods of the sender's.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys

TYPE_CHECKING = False  # a type checker takes it for true; to import typing takes longer than most answers run
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import IO, Any

THREADS = 64
_PARTS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


# ---- values ----------------------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """Return what JSON can carry of a value, with its type. Raises TypeError for what is no plain data.

    >>> encode((1, {"a": {2}}))
    {'tuple': [1, {'dict': [['a', {'set': [2]}]]}]}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    for scalar in (int, float, str):  # a class of the answer's becomes what it is made of
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    for name, kind in _PARTS.items():
        if isinstance(value, kind):
            return {name: [encode(each) for each in value]}
    raise TypeError(f"a {type(value).__name__} is no plain data")


def decode(shown: Any) -> Any:
    """Return the value of what `encode` returned. Raises ValueError or TypeError for anything else.

    >>> decode(encode([1.5, (None, b"a"), {1: "b"}]))
    [1.5, (None, b'a'), {1: 'b'}]
    """
    if not isinstance(shown, dict):
        if isinstance(shown, list):
            raise ValueError("a list without its type")
        return shown
    ((name, parts),) = shown.items()
    if name == "bytes":
        return bytes.fromhex(parts)
    if name == "complex":
        return complex(*parts)
    if name == "dict":
        return {decode(k): decode(v) for k, v in parts}
    return _PARTS[name](decode(each) for each in parts)


# ---- what runs here --------------------------------------------------------------------------------------------------


def run_program(path: str) -> None:
    """Run a file as the main program."""
    module = make_module("__main__")
    sys.modules["__main__"] = module
    sys.argv = [path]
    exec(compile(_read(path), path, "exec"), module.__dict__)


def serve_answer(path: str, requests: IO[str], replies: IO[str]) -> None:
    """Run a file as a module, then call its functions as they are asked for: {"name", "args", "kwargs"} a line."""
    import json

    module = make_module("answer")
    sys.modules["answer"] = module
    exec(compile(_read(path), path, "exec"), module.__dict__)
    for line in requests:
        asked = json.loads(line)
        try:
            function = find_function(module, asked["name"])
            reply = {"value": encode(function(*decode(asked["args"]), **decode(asked["kwargs"])))}
        except Exception as error:
            reply = {"raised": type(error).__name__, "text": str(error)[:200]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def make_module(name: str) -> ModuleType:
    """Return an empty module."""
    return type(sys)(name)


def find_function(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return the function of a module, or of its class Solution, as the sites of such problems want it."""
    if not hasattr(module, name) and hasattr(module, "Solution"):
        return getattr(module.Solution(), name)  # type: ignore[no-any-return]
    return getattr(module, name)  # type: ignore[no-any-return]


def run_tests(requests: IO[str], replies: IO[str]) -> None:
    """Run the tests of the first line, {"setup", "tests", "names"}: each true or false, with why, as the last line.

    A name of the answer's is here a function that writes {"name", "args", "kwargs"} and reads {"value"} or {"raised"}.
    """
    import json

    asked = json.loads(requests.readline())

    def make_caller(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            sent = {"name": name, "args": encode(args), "kwargs": encode(kwargs)}
            replies.write(json.dumps(sent) + "\n")
            replies.flush()
            reply = json.loads(requests.readline())
            if "raised" not in reply:
                return decode(reply["value"])
            kind = getattr(builtins, str(reply["raised"]), None)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if kind is not None and known else RuntimeError)(str(reply["text"]))

        return call

    space = {"__name__": "tests", **{name: make_caller(name) for name in asked["names"]}}
    results: list[str] = []
    for test in asked["tests"]:
        try:
            if not results:
                exec(asked["setup"], space)
            exec(test, space)
            results.append("")
        except Exception as error:
            results.append(f"{type(error).__name__}: {str(error)[:200]}")
    replies.write(json.dumps({"results": results}) + "\n")
    replies.flush()


def take_over_streams() -> tuple[IO[str], IO[str]]:
    """Return the process's streams as files of their own; what the code prints goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), "r", newline="\n"), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return requests, replies


def limit_threads() -> None:
    """Limit the threads, where Linux counts those of this sandbox alone (5.14). It counts no limit for root."""
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])
    if release >= (5, 14):
        resource.setrlimit(resource.RLIMIT_NPROC, (THREADS, THREADS))


def load_filter(text: str) -> None:
    """End with the parent from now on, and load a seccomp filter, given in base64, for good.

    Raises OSError if the kernel refuses.
    """
    import base64
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    steps = base64.b64decode(text)
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(steps) // 8, steps)
    # linux/prctl.h, linux/seccomp.h
    die_with_parent, no_new_privileges, set_seccomp, filter_mode = 1, 38, 22, 2
    for first, second, third in (
        (die_with_parent, 9, 0),
        (no_new_privileges, 1, 0),
        (set_seccomp, filter_mode, ctypes.byref(program)),
    ):
        if libc.prctl(first, second, third, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def main(arguments: list[str]) -> None:
    """Do what the arguments say: `--started FD [--limit-threads | --filter BASE64] ROLE [FILE]`."""
    started, arguments = int(arguments[1]), arguments[2:]
    if arguments[0] == "--limit-threads":
        limit_threads()
        arguments = arguments[1:]
    if arguments[0] == "--filter":
        load_filter(arguments[1])
        arguments = arguments[2:]
    os.write(started, b"1")  # from here on, whatever goes wrong is the answer's
    os.close(started)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # the module site, left out for its files, would define them
    if arguments[0] == "program":
        run_program(arguments[1])
        return
    streams = take_over_streams()
    if arguments[0] == "answer":
        serve_answer(arguments[1], *streams)
    else:
        run_tests(*streams)


if __name__ == "__main__":
    main(sys.argv[1:])
