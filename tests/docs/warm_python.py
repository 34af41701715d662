"""A Python that has imported the large libraries: guides start many, and each would import them for seconds.

`python warm_python.py SOCKET` imports, then waits; every request is answered by a fork, which is a Python of
its own with the arguments, the folder, the environment and the streams of whoever asks. A `stub` asks.
Nothing of this project is imported before the fork.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

STUB = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:3] == ["-m", "pytest"]:  # which warns of what is imported before it
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({place!r})
    socket.send_fds(asked, [b"."], [0, 1, 2])
    asked.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    asked.shutdown(socket.SHUT_WR)
    sys.exit(int(asked.recv(16) or b"1"))
"""


def write_stub(path: Path, place: str) -> None:
    """What is run in the place of `python`."""
    path.write_text(STUB.format(python=sys.executable, place=place))
    path.chmod(0o755)


def serve(place: str) -> None:
    """Answer one request after the other, for as long as there is somebody to ask."""
    import matplotlib.figure  # noqa: F401
    import optuna  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.base  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        while True:
            asked, _ = server.accept()
            with asked:
                _, streams, _, _ = socket.recv_fds(asked, 1, 3)
                words, folder, environment = json.loads(asked.makefile("rb").read())
                child = os.fork()
                if not child:
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                    os._exit(run(words, folder, environment))
                for stream in streams:
                    os.close(stream)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                asked.sendall(str(code if code >= 0 else 128 - code).encode())


def run(words: list[str], folder: str, environment: dict[str, str]) -> int:
    """The exit code of `python WORDS`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *rest = words
    first = folder if kind.startswith("-") else str(Path(kind).resolve().parent)
    sys.path[:1] = [first, *paths]
    code: object = 0
    try:
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


if __name__ == "__main__":
    serve(sys.argv[1])
