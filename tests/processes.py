"""Programs that begin quickly: forks of a server that has loaded what all of them load, and nothing of ours.

Torch, transformers and datasets take ten seconds of a core to load. A program started as `[python(), ...]` finds them
loaded; else it has what a new process has: its arguments, environment, folder, `sys.path` and streams, no module of
jepa4rec, and the exit code or signal that ends it. The Hub's libraries read their environment when they are loaded,
so each environment of theirs has a server, itself a fork of the first: an HF_HOME or HF_ENDPOINT that no program had
before costs seconds. A folder of its own for the code of checkpoints costs nothing.

What a test says of starting or of importing is said of `sys.executable`.
"""

import atexit
import gc
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

# Most of what is loaded; these read nothing of the Hub's environment.
FIRST = """torch._dynamo torch.distributed.fsdp torch.distributed.tensor scipy.optimize scipy.stats pandas
    pyarrow.compute pyarrow.dataset pyarrow.parquet ibis.backends.duckdb jinja2 yaml""".split()
THEN = """transformers.modeling_utils transformers.pipelines transformers.models.bert.modeling_bert datasets
    accelerate evaluate""".split()
OF_HUB = ("HF_", "TRANSFORMERS_")
KNOW_WHERE_CODE_IS = {
    "transformers.utils", "transformers.utils.hub", "transformers.dynamic_module_utils", "datasets.config",
    "evaluate.config",
}  # fmt: skip
CLIENT = """#!{python} -ISE
import json, os, signal, socket, sys
words = sys.argv[1:]
if not words or words[0][0] == "-" and words[0] not in ("-c", "-m"):
    os.execv({python!r}, [{python!r}, *words])
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
path = {path!r}
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
while path:  # the first server knows the one for this environment, which answers with the exit code
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    path, code = json.loads(server.makefile().readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def python() -> str:
    """An executable file to start programs with in place of `sys.executable`; its servers end with this process."""
    folder = tempfile.TemporaryDirectory(prefix="quick-")
    path = Path(folder.name) / "python"
    path.write_text(CLIENT.format(python=sys.executable, path=f"{folder.name}/0"), encoding="utf-8")
    path.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith((*OF_HUB, "PYTHONPATH"))}
    words = [sys.executable, __file__, path]
    server = subprocess.Popen(words, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.readline(), "the server of quick programs did not start"

    @atexit.register
    def end() -> None:
        server.communicate()  # closes what all of the servers listen to
        folder.cleanup()

    return str(path)


def ask_stranger(*words, home: Path, noise: bool = True) -> str:
    """What a program in `home` writes that finds nothing of the checkout by its path; AssertionError if it fails, or
    tells of weights that are missing or left over where no `noise` is wanted."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python(), *map(str, words)], cwd=home, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert noise or not re.search("UNEXPECTED|MISSING|newly initialized", done.stderr + done.stdout), done.stderr
    return done.stdout


def of_hub(environment) -> dict[str, str]:
    """What the Hub's libraries read when they are loaded; a token they read when they need it, and where the code of
    checkpoints is kept they are told again."""
    return {
        name: environment[name]
        for name in sorted(environment)
        if name.startswith(OF_HUB) and name not in ("HF_TOKEN", "HF_MODULES_CACHE")
    }


def keep_code_in(folder: str) -> None:
    for name in KNOW_WHERE_CODE_IS & sys.modules.keys():
        known = sys.modules[name]
        known.HF_MODULES_CACHE = type(known.HF_MODULES_CACHE)(folder)


def listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(64)
    return listening


def requests(listening: socket.socket):
    """Each client with its streams and what it asks for, until the input of this process is closed."""
    while listening in select.select([listening, 0], [], [])[0]:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # what was done before
        client = listening.accept()[0]
        size, streams, *_ = socket.recv_fds(client, 8, 3)
        yield client, streams, json.loads(client.makefile("rb").read(int.from_bytes(size, "big")))
        forget(client, streams)
    with suppress(ChildProcessError):
        while os.wait():
            pass
    sys.exit()


def load(names: list[str]) -> None:
    """Import them, and let the collector of every program leave them alone."""
    for name in names:
        import_module(name)
    gc.freeze()


def forget(client: socket.socket, streams: list[int]) -> None:
    """Close them: whoever reads the other ends waits until nobody has them."""
    client.close()
    for stream in streams:
        os.close(stream)


def serve(listening: socket.socket, folder: Path | None = None) -> list[str]:
    """Begin a program for each client: two forks, one that becomes it and one that tells the client how it ends.

    Returns in the program, with its words. With a `folder` this is the first server: each environment of the Hub's
    libraries gets a server there.
    """
    servers: dict[str, Path] = {}
    for client, streams, (words, place, environment) in requests(listening):
        if folder:
            settings = of_hub(environment)
            key = json.dumps(settings)
            if key not in servers:
                servers[key] = folder / str(1 + len(servers))
                own = listen(servers[key])
                if not os.fork():
                    forget(client, streams)
                    listening.close()
                    os.environ.update(settings)
                    load(THEN)
                    return serve(own)
                own.close()
            with suppress(OSError):  # who asked may be gone
                client.sendall(json.dumps([str(servers[key]), 0]).encode() + b"\n")
        elif os.fork():
            continue
        elif program := os.fork():
            watch(client, program)
        else:
            become(streams, place, environment)
            return words


def become(streams: list[int], place: str, environment: dict[str, str]) -> None:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 1024)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    if "HF_MODULES_CACHE" in environment:
        keep_code_in(environment["HF_MODULES_CACHE"])


def watch(client: socket.socket, program: int) -> None:
    """Hand signals on (a client that is gone was killed), and at the end the exit code."""
    ended = os.pidfd_open(program)
    while ended not in select.select([client, ended], [], [])[0]:
        word = client.recv(1)
        with suppress(ProcessLookupError):
            os.kill(program, word[0]) if word else os.killpg(program, signal.SIGKILL)
        if not word:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with suppress(OSError):
        client.sendall(json.dumps(["", code]).encode() + b"\n")
    os._exit(0)


def run(kind: str, *words: str) -> None:
    """What the interpreter does with its words."""
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    script = kind not in ("-c", "-m")
    sys.path[:] = [os.path.dirname(os.path.abspath(kind)) if script else "", *places, *sys.path[1:]]
    sys.argv[:] = [kind, *words] if script else [kind, *words[1:]]
    if script:
        runpy.run_path(kind, run_name="__main__")
    elif kind == "-m":
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        exec(compile(words[0], "<string>", "exec"), sys.modules["__main__"].__dict__)


def main() -> None:
    load(FIRST)
    print("ready", flush=True)
    folder = Path(sys.argv[1]).parent
    words = serve(listen(folder / "0"), folder)
    sys.executable, code = sys.argv[1], 1
    try:
        run(*words)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        print(error.code, file=sys.stderr) if error.code not in (None, code) else None
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # locks of the server's libraries may be held by threads that a fork does not have


if __name__ == "__main__":
    main()
