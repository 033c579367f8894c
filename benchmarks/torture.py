"""Kill it, fill the disk, damage its files, crowd it, run it for long: what a year of nights brings, in minutes.

    python benchmarks/torture.py --out results/benchmarks/reliability.json --page docs/reliability.md
    python benchmarks/torture.py --small --parts kills disk        a few of each, as the tests do

Everything is seeded but the order in which threads and processes get their turns. Runs are tiny and real: the one
loop, pre-training and fine-tuning, with a state saved, pruned, beaten and finished in both. They run in copies of this
process (fork), which has imported all there is to import, as many at once as there are cores. A copy dies by SIGKILL
at the file call that is its turn (Python's own audit events tell of each before it happens; what Rust and C++ write
between two of them goes into a hidden folder that counts for nothing yet), and another one resumes. "Survived" means
that the same command then ended well, with weights equal to the last bit to those of a run that nobody disturbed. The
exit code is 1 where anything at all was not survived, refused or answered.
"""

import argparse
import contextlib
import copy
import gc
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", OMP_NUM_THREADS="1")
sys.path[:0] = [str(ROOT), str(ROOT / "serving" / "space")]

import httpx
import numpy as np
import pyarrow as pa
import torch
import yaml

from jepa4rec import train_accelerate
from jepa4rec.benchmarks import fuzz
from jepa4rec.datasets_builders import load_dataset_dir, make_dataset, save_dataset
from jepa4rec.hub.opening import open_pipeline
from jepa4rec.serving.catalogue_seqrec import INDEXES, Catalogue
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline

TRACEBACK = 70  # the exit code of a copy of this process that an exception ended
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.truncate"}
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
DAMAGE = ("one bit flipped", "cut in half", "emptied", "removed")
MIB = 2**20


class Sizes(NamedTuple):
    """How much of everything."""

    every_kill: int  # of the file calls of finishing a run, every which one, from the middle of the first so many
    every_kill_of_all: int  # of those of a whole run
    every_signal: int  # likewise, for each kind of signal
    disks: int
    every_damage: int
    fuzz_seconds: float  # of a core, for each kind
    answers: int  # of a catalogue that changes meanwhile
    sessions: int
    clients: int
    seconds: float  # that these go on
    steps: int


WHOLE = Sizes(1, 1, 16, 8, 1, 15, 10_000, 20, 50, 60, 5000)
SMALL = Sizes(120, 400, 2000, 1, 71, 0.2, 200, 2, 3, 0.5, 40)  # of damages a multiple of 4 would try one kind alone


# ------------------------------------------------------------------------------------------------ runs, in copies


class Runs:
    """A dataset, a recipe, and what became of its run in copies of this process."""

    undisturbed: tuple[str, int] | None = None  # weights and bytes of the run, which are those of all parts

    def __init__(self, folder: Path):
        self.root, self.log = folder / "run", folder / "log.txt"
        starts = np.random.default_rng(0).integers(0, 12, 40)
        walks = [[int(start + step) % 12 for step in range(6)] for start in starts]  # the next item follows the last
        users = [f"u{row}" for row in range(40)]
        sequences = pa.table({"user_id": users, "items": pa.array(walks, pa.list_(pa.int32()))})
        about = {"name": "walks", "config": "default"}
        save_dataset(make_dataset(pa.Table.from_pylist(fuzz.ITEMS), sequences, about), folder / "walks")
        self.recipe = folder / "recipe.yaml"
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        phase = {"batch_size": 16, "lr": 1e-3, "max_items": 2}
        tree = {
            "run": {"save_every": 2, "log_every": 2, "resume": True},
            "data": {"dir": str(folder / "walks")},
            "tokenizer": {"max_items": 4, "max_tokens": 64, "vocab_size": 200},
            "model": {"config": shape},
            "phases": [
                {"kind": "pretrain", "steps": 6, "evaluate_every_epochs": 0.0, **phase},
                {"kind": "finetune", "steps": 6, "history_items": 2, "evaluate_every_steps": 3, **phase},
            ],
        }  # fmt: skip
        self.recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")

    def elsewhere(self, folder: Path) -> "Runs":
        """The same run in another folder."""
        other = copy.copy(self)
        other.root, other.log = folder / "run", folder / "log.txt"
        return other

    def arguments(self, *settings: str) -> list[str]:
        chosen = (f"run.output_dir={self.root}", *settings)
        return ["--recipe", str(self.recipe), *(word for own in chosen for word in ("--set", own))]

    def train(self, *settings: str, before: Callable[[], None] = lambda: None) -> int:
        """Begin or resume the run in a copy of this process: its exit code, or minus the signal that ended it."""

        def work() -> None:
            before()
            train_accelerate.main(self.arguments(*settings))

        return ended(copy_of_this_process(work, self.log))

    @property
    def weights(self) -> str | None:
        path = self.root / "checkpoint" / "model.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def expected(self) -> tuple[str, int]:
        """Weights and bytes that the run leaves where nothing disturbs it, trained once for all parts. What only the
        first run of all writes, such as caches of fonts, is then no call of the others."""
        if Runs.undisturbed is None:
            if self.train():
                raise RuntimeError(self.log.read_text()[-2000:])
            size = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
            Runs.undisturbed = self.weights, size
            self.begin_anew()
        return Runs.undisturbed

    def begin_anew(self, source: Path | None = None) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if source:
            shutil.copytree(source, self.root)

    def survived(self, wanted: str) -> bool:
        """Resume what was left, and see whether all is as if nothing had happened, with nothing left lying about."""
        code = self.train()
        left = [path.name for path in self.root.rglob(".*")] + [path.name for path in self.root.glob("state")]
        return code == 0 and self.weights == wanted and not left


def copy_of_this_process(work: Callable[[], Any], log: Path) -> int:
    """Begin to do something in a copy of this process, which tells into a file; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 0
    for name in SIGNALS:  # a shell lets what it starts in the background ignore some of them
        signal.signal(signal.Signals[name], signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            work()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
            print(f"exit: {error.code}", flush=True)
        except BaseException:
            traceback.print_exc()
            code = TRACEBACK
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a copy: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def spread(tries: list, work: Callable[[Path, list], list], folder: Path) -> list:
    """What `work` makes of each try, in order: a share for each core, in a copy of this process and a folder of its
    own."""
    cores = min(os.cpu_count() or 1, len(tries))
    places = [folder / f"core-{core}" for core in range(cores)]

    def share(core: int) -> None:
        (places[core] / "made.json").write_text(json.dumps(work(places[core], tries[core::cores])))

    for place in places:
        place.mkdir()
    logs = [place.with_suffix(".txt") for place in places]
    children = [copy_of_this_process(lambda core=core: share(core), logs[core]) for core in range(cores)]
    if any([ended(child) for child in children]):
        raise RuntimeError("\n".join(log.read_text()[-2000:] for log in logs))
    shares = [json.loads((place / "made.json").read_text()) for place in places]
    for place in places:
        shutil.rmtree(place)
    return [shares[number % cores][number // cores] for number in range(len(tries))]


def at_file_call(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """What lets a process count its file calls (of those that change something) and act before one of them."""

    def install() -> None:
        seen = itertools.count(1)

        def hook(event: str, arguments: tuple) -> None:
            if changes_files(event, arguments) and next(seen) == number:
                act()

        sys.addaudithook(hook)

    return install


def changes_files(event: str, arguments: tuple) -> bool:
    if event == "open":
        path, flags = arguments[0], arguments[2]
        own = isinstance(path, str | os.PathLike) and not str(path).startswith(("/dev", "/proc"))
        return own and isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in WRITES or (event == "ctypes.dlsym" and arguments[1] == "renameat2")  # two folders change names


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(runs: Runs) -> int:
    """File calls of one undisturbed start or resume."""
    told, seen = runs.root.with_name("calls"), itertools.count()

    def install() -> None:
        def hook(event: str, arguments: tuple) -> None:
            if changes_files(event, arguments):
                next(seen)

        sys.addaudithook(hook)

    def count() -> None:
        install()
        train_accelerate.main(runs.arguments())
        number = next(seen)
        told.write_text(str(number))

    if ended(copy_of_this_process(count, runs.log)):
        raise RuntimeError(runs.log.read_text()[-2000:])
    return int(told.read_text())


# ------------------------------------------------------------------------------------------------ the parts


def kills(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """SIGKILL at every file call of finishing a run, and at every one of a whole run."""
    every = {"finishing": sizes.every_kill, "a whole run": sizes.every_kill_of_all}

    def tries(calls: dict[str, range]) -> list[tuple[str, str, int]]:
        return [
            ("SIGKILL", what, number) for what, apart in every.items() for number in calls[what][apart // 2 :: apart]
        ]

    return _disturb(folder, tries, finishing=True)


def signals(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """Signals that a process may answer, each at file calls of its own all over a whole run."""

    def tries(calls: dict[str, range]) -> list[tuple[str, str, int]]:
        apart = min(sizes.every_signal, len(calls["a whole run"]))
        return [
            (name, "a whole run", number)
            for name in SIGNALS
            for number in calls["a whole run"][rng.randrange(apart) :: apart]
        ]

    return _disturb(folder, tries)


def _disturb(
    folder: Path, choose: Callable[[dict[str, range]], list[tuple[str, str, int]]], finishing: bool = False
) -> dict:
    """Try signals at file calls, which are counted from 1, of a whole run, and of ``finishing`` one."""
    runs = Runs(folder)
    wanted, trained = runs.expected()[0], None
    calls = {"a whole run": range(1, count_calls(runs) + 1)}
    if finishing:
        runs.begin_anew()
        runs.train(before=lambda: setattr(train_accelerate, "finish", lambda *_: os._exit(0)))
        trained = shutil.copytree(runs.root, folder / "trained")
        calls["finishing"] = range(1, count_calls(runs) + 1)
    tries = choose(calls)

    def work(place: Path, share: list[tuple[str, str, int]]) -> list[bool]:
        own = runs.elsewhere(place)
        return [disturbed_and_survived(own, *one, trained, wanted) for one in share]

    survived, rows = spread(tries, work, folder), []
    for name, what in dict.fromkeys(one[:2] for one in tries):
        own = {one[2]: held for one, held in zip(tries, survived, strict=True) if one[:2] == (name, what)}
        lost = [point for point, held in own.items() if not held]
        row = {"what": f"{name} at a file call of {what}", "of": len(calls[what]), "tried": len(own)}
        rows.append(row | {"survived": len(own) - len(lost), "lost": lost})
    return {"rows": rows, "failed": sum(len(row["lost"]) for row in rows)}


def disturbed_and_survived(runs: Runs, name: str, what: str, point: int, trained: Path | None, wanted: str) -> bool:
    """Send a run a signal at one of its file calls; whether it ended by that, and all went on as if it had not."""
    runs.begin_anew(trained if what == "finishing" else None)
    code = runs.train(before=at_file_call(point, lambda: os.kill(os.getpid(), signal.Signals[name])))
    by_signal = code == -signal.SIGKILL if name == "SIGKILL" else code not in (0, TRACEBACK)
    return by_signal and runs.survived(wanted)


def disk(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """Runs on a disk that is too small: one sentence, and once there is room the same weights."""
    runs = Runs(folder)
    (wanted, size), rows = runs.expected(), []
    for number in range(sizes.disks):
        room = 3 * size * (number + 1) // (sizes.disks + 1)  # its states need more than what is left in the end
        runs.begin_anew()
        with small_disk(runs.root, room) as (kind, limit):
            code = runs.train(before=limit)
            told = runs.log.read_text(encoding="utf-8")
            sentence = code == 1 and "exit: " in told and "Traceback" not in told
            kept = shutil.copytree(runs.root, folder / "kept", dirs_exist_ok=True)
        runs.begin_anew(kept)
        shutil.rmtree(kept)
        rows.append({"room": room, "kind": kind, "sentence": sentence or code == 0, "survived": runs.survived(wanted)})
        said = told.rpartition("exit: ")[2].partition("\n")[0].replace(str(folder), "").replace(f"{ROOT}/", "")
        rows[-1]["told"] = said[:200] if sentence else "finished" if code == 0 else told[-500:]
    failed = sum(not (row["sentence"] and row["survived"]) for row in rows)
    return {"rows": rows, "run_bytes": size, "failed": failed}


@contextlib.contextmanager
def small_disk(place: Path, room: int):
    """A file system of so many bytes, which takes a right to mount; else no file may be longer than so many."""
    place.mkdir(parents=True)
    pages = max(1, room // 4096)
    asked = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs", str(place)]
    if os.geteuid() == 0 and subprocess.run(asked, capture_output=True).returncode == 0:
        try:
            yield "file system", lambda: None
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
        return

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (room // 8, room // 8))

    yield "longest file", limit


def damage(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """Every file of an unfinished run, a catalogue and a dataset, damaged in four ways: refused, or without harm."""
    runs, shop = Runs(folder), fuzz.Shop(folder)
    wanted = runs.expected()[0]
    under_way = runs.root / "state" / "phase-1-step-4"
    runs.train(
        before=lambda: sys.addaudithook(lambda event, _: die() if event == "open" and under_way.exists() else None)
    )
    places = {"unfinished run": runs.root, "catalogue": shop.catalogue, "dataset": shop.dataset}
    sound = {name: shutil.copytree(place, folder / f"sound {name}") for name, place in places.items()}

    def resume(own: Runs) -> str:
        code = own.train()
        if code == 0:
            return "no harm" if own.weights == wanted else "silent"
        return "refused" if code == 1 else "traceback"

    def read(opened: Callable[[], Any], unseen: str) -> str:
        problem = fuzz.finding(fuzz.Case(opened, "", (str(folder),)))
        if problem:
            return "traceback"
        try:
            opened()
        except (ValueError, OSError):
            return "refused"
        return unseen  # it opened

    opened = {
        "catalogue": lambda place: read(lambda: shop.pipeline().load_catalogue(place), "silent"),
        "dataset": lambda place: read(lambda: load_dataset_dir(place), "no harm"),  # every value has a fingerprint
    }

    def work(place: Path, share: list[tuple[str, str, str]]) -> list[str]:
        outcomes = []
        for name, file, kind in share:
            own = runs.elsewhere(place)
            damaged = own.root if name == "unfinished run" else place / name
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(sound[name], damaged)
            spoil(damaged / file, kind, random.Random(f"{seed}/{name}/{file}/{kind}"))
            outcomes.append(resume(own) if name == "unfinished run" else opened[name](damaged))
        return outcomes

    seed, rows = rng.random(), []
    for name, place in sound.items():
        files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
        every = sizes.every_damage if name == "unfinished run" else 1
        tries = [(name, *one) for one in itertools.product(files, DAMAGE)][::every]
        outcomes = spread(tries, work, folder)
        bad = [
            f"{file}: {kind}: {outcome}"
            for (_, file, kind), outcome in zip(tries, outcomes, strict=True)
            if outcome in ("silent", "traceback")
        ]
        rows.append({"what": name, "files": len(files), "tried": len(tries), **Counter(outcomes), "bad": bad})
    return {"rows": rows, "failed": sum(len(row["bad"]) for row in rows)}


def spoil(path: Path, kind: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if kind == "removed":
        return path.unlink()
    if kind == "one bit flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes({"cut in half": content[: len(content) // 2], "emptied": b""}.get(kind, content))


def fuzzing(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """benchmarks/fuzz.py."""
    seed = rng.getrandbits(32)

    def work(place: Path, kinds: list[str]) -> list[dict]:
        return list(fuzz.fuzz(kinds, seed, sizes.fuzz_seconds).values())

    rows = [
        {"what": kind, "inputs": own["cases"], "tracebacks": len(own["findings"]), "findings": own["findings"]}
        for kind, own in zip(fuzz.DOORS, spread(list(fuzz.DOORS), work, folder), strict=True)
    ]
    return {"rows": rows, "failed": sum(row["tracebacks"] for row in rows)}


def catalogue(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """Two writers and six readers on one catalogue in memory; one process that writes a folder which others open."""
    rows = [_threads(kind, sizes.answers // len(INDEXES) + 1) for kind in INDEXES if kind != "faiss" or has_faiss()]
    rows.append(_processes(folder, sizes.answers // 50))
    return {"rows": rows, "failed": sum(row["wrong"] + row["errors"] for row in rows)}


def has_faiss() -> bool:
    with contextlib.suppress(ImportError):
        import faiss  # noqa: F401

        return True
    return False


WIDTH, LASTING, PASSING = 16, 200, 40


def vectors_of(ids: list[str]) -> torch.Tensor:
    """Vectors (n, 16), one long, each a function of its id, so that any answer can be told right from wrong."""
    rows = [np.random.default_rng(int(item_id)).normal(size=WIDTH) for item_id in ids]
    return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=1)


def wrong(ids: list[str], items: list[dict], scores: np.ndarray, query: torch.Tensor, must: set[str]) -> bool:
    """Whether an answer holds another item's text or score, is out of order, or lacks one that was there all along."""
    expected = (vectors_of(ids) @ query).numpy()
    mixed = any(item != {"title": f"item {item_id}"} for item_id, item in zip(ids, items, strict=True))
    return (
        mixed or not np.allclose(expected, scores, atol=1e-5) or (np.diff(scores) > 1e-6).any() or not must <= set(ids)
    )


def _threads(kind: str, answers: int) -> dict:
    shared = Catalogue("0" * 64, WIDTH, kind, rescore=20)
    lasting = [str(number) for number in range(LASTING)]
    shared.add(lasting, [{"title": f"item {own}"} for own in lasting], vectors_of(lasting), None)
    table, told, stop = vectors_of(lasting), Counter(), threading.Event()

    def write(first: int) -> None:
        numbers = itertools.count(first, 2)
        while not stop.is_set():
            ids = [str(next(numbers)) for _ in range(PASSING)]
            shared.add(ids, [{"title": f"item {own}"} for own in ids], vectors_of(ids), None)
            shared.remove(ids)
            told["writes"] += 2

    def ask(reader: int) -> None:
        random_ = np.random.default_rng(reader)
        for _ in range(answers // 6 + 1):
            number = int(random_.integers(LASTING))
            query = table[number]  # its own item is nearest, and is always there
            try:
                now = shared.snapshot()
                scores, found = now.search(query[None], 10)
                ids, items = [now.ids[row] for row in found[0]], [now.items[row] for row in found[0]]
                told["wrong"] += wrong(ids, items, scores[0], query, {str(number)})
            except Exception:
                told["errors"] += 1
            told["answers"] += 1

    writers = [threading.Thread(target=write, args=(10_000 + own,)) for own in range(2)]
    readers = [threading.Thread(target=ask, args=(own,)) for own in range(6)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    counts = {name: told[name] for name in ("answers", "writes", "wrong", "errors")}
    return {"what": f"index {kind}: 2 threads write, 6 read", **counts}


def _processes(folder: Path, answers: int) -> dict:
    """A process saves catalogues of 50 and of 80 items in turns under one name; whoever opens it gets one of them."""
    place = folder / "served"

    def filled(number: int) -> Catalogue:
        ids = [str(own) for own in range(number)]
        made = Catalogue("0" * 64, WIDTH)
        made.add(ids, [{"title": f"item {own}"} for own in ids], vectors_of(ids), None)
        return made

    both = [filled(50), filled(80)]
    both[0].save(place)
    writer = os.fork()
    if not writer:
        for made in itertools.cycle(both):
            made.save(place)
    told = Counter()
    try:
        for number in range(answers):
            query = vectors_of([str(number % 50)])[0]
            try:
                now = Catalogue.load(place, "0" * 64).snapshot()
                scores, found = now.search(query[None], 10)
                ids, items = [now.ids[row] for row in found[0]], [now.items[row] for row in found[0]]
                told["wrong"] += wrong(ids, items, scores[0], query, {str(number % 50)}) or len(now) not in (50, 80)
            except (ValueError, OSError, RuntimeError):
                told["errors"] += 1
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    what = "one process saves the folder over and over, another opens and asks it"
    return {
        "what": what,
        "answers": answers,
        "writes": "all the while",
        "wrong": told["wrong"],
        "errors": told["errors"],
    }


def crowds(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """Sessions of the page and clients of the service, all at once, for a minute each."""
    shop = fuzz.Shop(folder)
    items = [{"item_id": f"i{row}", "title": " ".join(rng.sample(fuzz.WORDS, 4))} for row in range(2000)]
    pipe = SequentialRecommendationPipeline(shop.model, shop.tokenizer)
    pipe.add_items(items, popularity=range(2000))
    pipe.save_catalogue(folder / "crowd")
    rows = [
        _crowd("page", folder, shop, sizes.sessions, sizes.seconds, visit),
        _crowd("service", folder, shop, sizes.clients, sizes.seconds, ask_service),
    ]
    return {"rows": rows, "failed": sum(row["errors"] for row in rows)}


def _crowd(name: str, folder: Path, shop: fuzz.Shop, number: int, seconds: float, act: Callable) -> dict:
    port = free_port()
    scripts = {
        "page": ["serving/space/app.py", "--checkpoint", shop.checkpoint, "--catalogue", folder / "crowd"],
        "service": ["scripts/serve.py", shop.checkpoint, folder / "crowd"],
    }
    words = [sys.executable, *map(str, scripts[name]), "--port", str(port)]
    log = folder / f"{name}.log"
    with open(log, "w") as file:
        served = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, served, log)
        with httpx.Client(base_url=address, timeout=60) as client:
            act(client, random.Random(0))  # what is made at the first question is not of the crowd
        before, told, times = resident(served.pid), Counter(), []
        end = time.monotonic() + seconds

        def use(seed: int) -> None:
            dice = random.Random(seed)
            with httpx.Client(base_url=address, timeout=60) as client:
                while time.monotonic() < end:
                    started = time.perf_counter()
                    try:
                        act(client, dice)
                    except Exception as error:
                        told["errors"] += 1
                        told[f"{type(error).__name__}: {error}"[:200]] += 1
                    times.append(time.perf_counter() - started)

        users = [threading.Thread(target=use, args=(seed,)) for seed in range(number)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        row = {"what": name, "users": number, "seconds": seconds, "answers": len(times), "errors": told["errors"]}
        row |= {f"p{own}_ms": round(float(np.percentile(times, own)) * 1000, 1) for own in (50, 99)}
        row |= {"memory_before_mib": before, "memory_after_mib": resident(served.pid)}
        return row | {"told": [text for text in told if text != "errors"]}
    finally:
        served.terminate()
        served.wait(60)


def ask_service(client: httpx.Client, dice: random.Random) -> None:
    history = [f"i{dice.randrange(2000)}" for _ in range(dice.randint(1, 8))]
    answer = client.post("/recommend", json={"history": history, "top_k": 10, "exclude_history": True})
    if answer.status_code != 200 or len(answer.json()["items"]) != 10:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")


def visit(client: httpx.Client, dice: random.Random) -> None:
    """What a browser sends for one click: an example, a search, an item added, a wish."""
    config = client.get("/config").json()
    names = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    element, event, said, data = dice.choice(
        (
            ("example", "click", None, []),
            ("search", "change", None, ["tea"]),
            ("found", "click", {"action": "add", "id": f"i{dice.randrange(2000)}"}, []),
            ("wish", "change", None, [dice.choice(fuzz.WORDS), 50, False, 5, True]),
        )
    )
    target = names[element]
    chosen = next(own for own in config["dependencies"] if [target, event] in own["targets"])
    session = f"{dice.getrandbits(60):x}"
    body = {"data": [None, *data], "event_data": said, "fn_index": chosen["id"], "trigger_id": target}
    client.post("/gradio_api/queue/join", json=body | {"session_hash": session}).raise_for_status()
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                if not message["success"]:
                    raise RuntimeError(f"{element}: {message['output']}")
                return
    raise RuntimeError(f"{element}: no answer")


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def wait_for(address: str, served: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and served.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(address, timeout=5).status_code in (200, 404):
                return
        time.sleep(0.5)
    raise RuntimeError(f"{served.args[1]} did not start:\n{log.read_text()[-2000:]}")


def resident(process: int | str) -> float:
    """Memory of a process in MiB."""
    return round(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MIB, 1)


def memory(folder: Path, sizes: Sizes, rng: random.Random) -> dict:
    """Resident memory of a long training, at tenths of its way."""
    runs, told = Runs(folder), folder / "memory.json"
    every, seen, after_step = sizes.steps // 10, [], train_accelerate.after_step

    def watched(training, watch):
        if training.progress.step % every == 0:
            seen.append(resident("self"))
            told.write_text(json.dumps(seen))
        return after_step(training, watch)

    long = [f"phases.1.steps={sizes.steps}", f"phases.1.evaluate_every_steps={sizes.steps}", "run.save_every=500"]
    if runs.train(*long, before=lambda: setattr(train_accelerate, "after_step", watched)):
        raise RuntimeError(runs.log.read_text()[-2000:])
    seen = json.loads(told.read_text())[-10:]
    grown = round(seen[-1] - seen[1], 1)  # by then everything that is made once has been made
    rows = [{"step": every * place, "mib": value} for place, value in enumerate(seen, start=1)]
    return {"rows": rows, "grown_mib": grown, "failed": int(grown > 64)}


def cpu_seconds() -> float:
    """Seconds of a core that this process and all that it has waited for have taken."""
    taken = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in taken)


PARTS: dict[str, Callable[[Path, Sizes, random.Random], dict]] = {
    "kills": kills,
    "signals": signals,
    "disk": disk,
    "damage": damage,
    "fuzz": fuzzing,
    "catalogue": catalogue,
    "crowds": crowds,
    "memory": memory,
}


# ------------------------------------------------------------------------------------------------ the page

HEAD = """# Reliability

What a year of nights brings, in minutes: `make torture` kills, damages, fills and crowds real, tiny runs, and writes
this page from `results/benchmarks/reliability.json`. `make fuzz` throws damage at every input for longer. A run that
was killed counts as survived when the same command, given again, ends with weights equal to the last bit to those of
an undisturbed run.

"""


# Title, heads and the fields of a row of each part's table.
TABLES = {
    "kills": ("Kills", {"what": "what", "of": "file calls", "tried": "tried", "survived": "survived"}),
    "signals": ("Signals", {"what": "what", "of": "file calls", "tried": "tried", "survived": "survived"}),
    "disk": (
        "A full disk",
        {
            "room": "bytes",
            "kind": "limit",
            "told": "what was said",
            "sentence": "one sentence",
            "survived": "survived",
        },
    ),
    "damage": (
        "Damaged files: " + ", ".join(DAMAGE),
        {"what": "of", "files": "files", "tried": "tried", "refused": "refused", "no harm": "same weights"}
        | {"silent": "went on to others", "traceback": "tracebacks"},
    ),
    "fuzz": ("Fuzzed inputs", {"what": "kind", "inputs": "inputs", "tracebacks": "tracebacks"}),
    "catalogue": (
        "Readers and writers of a catalogue",
        {"what": "who", "answers": "answers", "writes": "writes", "wrong": "wrong", "errors": "errors"},
    ),
    "crowds": (
        "Crowds",
        {"what": "of", "users": "at once", "seconds": "s", "answers": "answers", "errors": "errors"}
        | {"p50_ms": "p50 ms", "p99_ms": "p99 ms", "memory_before_mib": "MiB before", "memory_after_mib": "MiB after"},
    ),
    "memory": ("Memory of a long training", {"step": "step", "mib": "MiB"}),
}


def page(report: dict) -> str:
    """docs/reliability.md."""
    text = f"{HEAD}{report['machine']}\n"
    for name, (title, heads) in TABLES.items():
        if name in report["parts"]:
            rows = [list(heads.values()), ["---"] * len(heads)]
            rows += [[_cell(row.get(field, 0)) for field in heads] for row in report["parts"][name]["rows"]]
            text += "\n".join([f"\n## {title}\n", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
    took = {
        name: [name, *(f"{own[unit]:,}" for unit in ("seconds", "cpu_seconds"))]
        for name, own in report["parts"].items()
    }
    total = [f"{sum(own[unit] for own in report['parts'].values()):,}" for unit in ("seconds", "cpu_seconds")]
    rows = [
        ["part", "s", "s of a core"],
        ["---"] * 3,
        *(took[name] for name in TABLES if name in took),
        ["all", *total],
    ]
    return text + "\n".join(["\n## What it took\n", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:,}" if isinstance(value, int | float) else str(value).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="a few of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="", help="a sentence about the machine and what else ran on it")
    parser.add_argument("--out", type=Path, help="parts that are not run now are kept from what is there")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a copy of a process has none of its threads
    train_accelerate.estimate = lambda *_: {}  # of how long a run will take: a quarter of one so small, and no file
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        open_pipeline(str(fuzz.Shop(Path(folder)).checkpoint))  # what is made once here no copy has to make
    gc.collect()
    gc.freeze()  # or every copy's collector would walk through all that was imported
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out and options.out.is_file() else {}
    report = {"machine": options.machine or kept.get("machine", f"{os.cpu_count()} cores."), "seed": options.seed}
    report["parts"] = dict(kept.get("parts", {}))
    for name in options.parts:
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            started, before, sizes = time.monotonic(), cpu_seconds(), SMALL if options.small else WHOLE
            own = PARTS[name](Path(folder), sizes, random.Random(f"{options.seed}/{name}"))
            own |= {"seconds": round(time.monotonic() - started), "cpu_seconds": round(cpu_seconds() - before)}
        report["parts"][name] = own
        print(f"{name}: {own['failed']} failed, {own['seconds']} s, {own['cpu_seconds']} of a core", flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.page:
        options.page.write_text(page(report), encoding="utf-8")
    gc.unfreeze()  # or extensions find leaks
    sys.exit(any(own["failed"] for own in report["parts"].values()))


if __name__ == "__main__":
    main()
