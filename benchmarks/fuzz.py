"""Throw seeded damage at every door of the project; whatever comes in, no traceback comes out.

    python benchmarks/fuzz.py --seconds 20 --out results/benchmarks/fuzz.json    so long, of a core, for each kind
    python benchmarks/fuzz.py --kinds tables --only 117                 one case again, with its input

The one rule, of what counts as a sentence: an input is answered, or refused with a ValueError, a TypeError, an
OSError or an exit that a `raise` of this project made. Its message is one line of at most 1,000 letters (a run of one
letter, as in a long value, counts once) and names the thing that is wrong: the file, the field, the setting or the
row. An OSError of the system that names the file will do. Everything else is a finding: an exception of another type,
one from inside a library or from an expression of ours, an unnamed thing, a case that takes 20 seconds of a core.
"""

import argparse
import contextlib
import copy
import io
import json
import linecache
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False")
sys.path[:0] = [str(ROOT), str(ROOT / "serving" / "space")]

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
import yaml

from jepa4rec.baselines.sasrec import SasRec, SasRecConfig
from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.datasets_builders import build, load_dataset_dir, make_dataset, save_dataset
from jepa4rec.hub.opening import open_pipeline
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.scripts import recommend
from jepa4rec.serving.catalogue_seqrec import ABOUT_FILE, ITEMS_FILE, VECTORS_FILE, _digests
from jepa4rec.serving.pipeline_catalogue import CataloguePipeline, save_item_ids
from jepa4rec.serving.pipeline_item_ids import save_item_checkpoint
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files
from jepa4rec.tokenization_itemsent import SETTINGS, ItemSentTokenizer
from jepa4rec.training.recipe import read_recipe
from jepa4rec.training.start import train_wordpiece

MOST_SECONDS, MOST_LETTERS = 20, 1000
WEIRD = (
    None, True, False, 0, -1, 3, 2**70, 10**400, 0.5, float("nan"), float("inf"), -0.0, "", " ", "\ud83c", "\0", "\n",
    "[SEP]", "[MASK] [PAD]", "a" * 5000, "tea", "p1", "é́", "🫖", "=1+1", "'; DROP", "1e999", [], {}, [None], [[]],
    {"title": None}, {"a": {"b": 1}}, ["p0", "\udfff"],
)  # fmt: skip
WORDS = "ceramic teapot iron green tea loose leaf black bags honey dipper running shoes socks tent torch stove".split()
ITEMS = [{"item_id": f"p{n}", "title": " ".join(WORDS[n : n + 3]), "brand": f"Brand {n % 4}"} for n in range(12)]
HISTORIES = [[0, 3, 8, 11], [1, 2, 4], [5, 6, 7], [0, 1, 2], [9, 8]]
INPUT = ("input", "item", "history", "attribute", "text", "id", "setting")  # what messages call what they were given


class Case(NamedTuple):
    """One try: what is done, what to show of its input, and the words of which a message has to hold one."""

    attempt: Callable[[], Any]
    shown: Any
    names: tuple[str, ...]


Door = Callable[[random.Random], Case]


# ------------------------------------------------------------------------------------------------ the rule


class TookTooLong(BaseException):
    """Past everything that an attempt may catch."""


def finding(case: Case) -> str | None:
    """Why a case breaks the rule; None where it does not."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            try:
                case.attempt()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    except KeyboardInterrupt:
        raise
    except (ValueError, TypeError, OSError, SystemExit) as error:
        return complaint(error, case.names)
    except BaseException as error:  # a panic of Rust's is no Exception
        return _told(error)
    return None


def complaint(error: BaseException, names: tuple[str, ...]) -> str | None:
    """What is wrong with a refusal; an exit speaks for the error behind it."""
    message = re.sub(r"(.)\1{9,}", r"\1", str(error), flags=re.DOTALL)
    cause = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
    if not _raised_by_us(cause) and not (isinstance(cause, OSError) and any(name in str(cause) for name in names[:1])):
        return f"not raised by us: {_told(cause)}"
    if not message or "\n" in message or len(message) > MOST_LETTERS:
        return f"no sentence of one line: {message[:2000]!r}"
    if not any(name.lower() in message.lower() for name in names):
        return f"names none of {', '.join(names)}: {message}"
    return None


def _raised_by_us(error: BaseException) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno).strip()
    return Path(last.filename).is_relative_to(ROOT) and line.startswith(("raise", "sys.exit", "parser.error"))


def _told(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(ROOT)]
    place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:300]}"


def _alarm(*_) -> None:
    raise TookTooLong(f"more than {MOST_SECONDS} s")


# ------------------------------------------------------------------------------------------------ damage


def mutate(rng: random.Random, tree: Any, times: int | None = None) -> Any:
    """A copy of nested lists and dicts in which some nodes were replaced, taken out, doubled or wrapped."""
    tree = copy.deepcopy(tree)
    for _ in range(times or rng.randint(1, 3)):
        holder = {"": tree}
        _damage_node(rng, holder, "")
        tree = holder[""]
    return tree


def _damage_node(rng: random.Random, parent: Any, key: Any) -> None:
    node = parent[key]
    if isinstance(node, dict | list) and node and rng.random() < 0.85:
        _damage_node(rng, node, rng.choice(list(node) if isinstance(node, dict) else range(len(node))))
        return
    match rng.randrange(6):
        case 0 if len(parent) > 1:
            del parent[key]
        case 1 if isinstance(parent, dict) and len(parent) > 1:
            parent[rng.choice(("x", "", "\ud83c", " title ", str(key).upper()))] = parent.pop(key)
        case 2:
            parent[key] = rng.choice(([node], [node, node], {"x": node}, str(node)))
        case _:
            parent[key] = weird(rng)


def weird(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(WEIRD))


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cut, flipped, filled or doubled somewhere."""
    place = rng.randrange(len(content) + 1)
    end = min(len(content), place + rng.choice((1, 2, 50)))
    middle = rng.choice((b"", b"\0", b"\xff\xfe", b'"', b"\r", b"[" * 3000, bytes([rng.randrange(256)]), content[:50]))
    return rng.choice((content[:place], content[:place] + middle + content[end:], middle, content + middle))


def spoil(rng: random.Random, path: Path) -> str:
    """Damage a file by its meaning (JSON) or its bytes; returns what was done, to be shown."""
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        content = json.dumps(mutate(rng, json.loads(content))).encode()
    else:
        content = damage_bytes(rng, content)
    path.write_bytes(content)
    return f"{path.name}: {content[:1500]!r}"


# ------------------------------------------------------------------------------------------------ the doors


class Shop:
    """What the doors stand in front of: tiny checkpoints, a dataset and a catalogue, under one folder."""

    def __init__(self, folder: Path):
        torch.manual_seed(0)
        self.folder = folder
        backend = train_wordpiece([text for item in ITEMS for text in item.values()], vocab_size=200)
        self.tokenizer = ItemSentTokenizer.wrap(backend, max_tokens=64, max_items=8)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = Jepa4RecConfig(**shape, vocab_size=len(backend), max_position_embeddings=64)
        self.model = Jepa4RecModel(config).eval()
        self.checkpoint = folder / "checkpoint"
        save_checkpoint_files(self.model, self.tokenizer, self.checkpoint)
        self.by_id = folder / "sasrec"
        save_item_checkpoint(
            SasRec(SasRecConfig(num_items=len(ITEMS), hidden_size=8, num_hidden_layers=1)), self.by_id
        )
        save_item_ids(self.by_id, [item["item_id"] for item in ITEMS], range(len(ITEMS)))
        self.catalogue = folder / "catalogue"
        self.pipeline().save_catalogue(self.catalogue)
        users = [f"u{row}" for row in range(len(HISTORIES))]
        sequences = pa.table({"user_id": users, "items": pa.array(HISTORIES, pa.list_(pa.int32()))})
        self.dataset = folder / "dataset"
        save_dataset(
            make_dataset(pa.Table.from_pylist(ITEMS), sequences, {"name": "fuzz", "config": "a"}), self.dataset
        )

    def pipeline(self) -> CataloguePipeline:
        made = SequentialRecommendationPipeline(self.model, self.tokenizer)
        made.add_items(ITEMS, popularity=range(len(ITEMS)))
        return made

    def copy_of(self, folder: Path) -> Path:
        """A place of this name to damage."""
        place = self.folder / "damaged" / folder.name
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(folder, place))


def texts(shop: Shop) -> Door:
    """Items and histories to the tokenizer, with its usual arguments and damaged ones."""
    plain = [
        [{"title": "Green tea", "brand": "Leafwell"}, {"title": "Pot", "price": 3.5, "tags": ["a", "b"]}],
        [{"t": 1}],
    ]

    def door(rng: random.Random) -> Case:
        given = mutate(rng, rng.choice((plain, plain[0], plain[0][0], "Green tea", ["Green tea", "pot"])))
        options = rng.choice(({}, {"return_tensors": "pt"}, {"return_tensors": "np", "padding": "max_length"}))
        if rng.random() < 0.5:
            return Case(lambda: shop.tokenizer(given, **options), (given, options), INPUT)
        return Case(lambda: shop.tokenizer.encode_items(given), given, INPUT)

    return door


def settings(shop: Shop) -> Door:
    """Settings of the tokenizer, and the text that is read under them."""

    def attempt(chosen: dict) -> None:
        ItemSentTokenizer.wrap(shop.tokenizer, **chosen)([[{"title": "tea", "brand": "a"}] * 3], return_tensors="pt")

    def door(rng: random.Random) -> Case:
        chosen = {rng.choice((*SETTINGS, "max_item", "x")): weird(rng) for _ in range(rng.randint(1, 3))}
        return Case(lambda: attempt(chosen), chosen, (*chosen, "tags", "max_tokens"))

    return door


def questions(shop: Shop) -> Door:
    """Calls of the pipeline, and items that come and go; of a model that reads, and of one that knows ids."""
    by_id = open_pipeline(str(shop.by_id))
    by_id.add_items(ITEMS)
    wishes = {"top_k": 3, "exclude_history": True, "filter": ["p1", "p2"], "unknown": "ignore", "strict": False}
    wishes |= {"boosts": {"p1": 0.5}, "diversity": 0.5, "most_per": {"brand": 1}}
    good = [{"history": ["p0", {"title": "Tent"}]}, {"history": []}, {"history": ["p4"]}]

    def door(rng: random.Random) -> Case:
        pipe = rng.choice((shop.pipeline(), by_id))
        kind = rng.randrange(4)
        if kind == 0:
            items = mutate(rng, [{**item, "item_id": f"new {item['item_id']}"} for item in ITEMS[:3]])
            counts = rng.choice((None, [1, 2, 3], weird(rng)))
            if pipe is by_id:
                pipe = shop.pipeline()
            return Case(lambda: pipe.add_items(items, popularity=counts), (items, counts), (*INPUT, "popularity"))
        if kind == 1:
            ids = mutate(rng, ["p0", "p3"])
            pipe = shop.pipeline()
            return Case(lambda: pipe.remove_items(ids), ids, ("id", "item"))
        asked = mutate(rng, rng.choice((good, good[0]))) if rng.random() < 0.7 else good
        chosen = {name: wishes[name] for name in rng.sample(list(wishes), rng.randint(0, 3))}
        chosen = mutate(rng, chosen) if chosen and rng.random() < 0.7 else chosen
        chosen = {str(name): value for name, value in chosen.items()} if isinstance(chosen, dict) else {}
        names = (*INPUT, *chosen, *wishes)
        return Case(lambda: json.dumps(pipe(asked, **chosen)), (asked, chosen), names)

    return door


def catalogues(shop: Shop) -> Door:
    """Saved catalogues whose files were damaged, some with hashes that fit, as of a file that was edited by hand."""

    def attempt(folder: Path) -> None:
        pipe = shop.pipeline()
        pipe.load_catalogue(folder)
        pipe({"history": ["p0"]}, top_k=3)

    def door(rng: random.Random) -> Case:
        folder = shop.copy_of(shop.catalogue)
        about = json.loads((folder / ABOUT_FILE).read_text())
        match rng.randrange(4):
            case 0:
                shown = spoil(rng, folder / rng.choice((ABOUT_FILE, ITEMS_FILE, VECTORS_FILE)))
            case 1:
                shown = mutate(rng, about)
                (folder / ABOUT_FILE).write_text(json.dumps(shown))
            case _:
                rows = [json.loads(line) for line in (folder / ITEMS_FILE).read_text().splitlines()]
                shown = mutate(rng, rows)
                lines = map(json.dumps, shown) if isinstance(shown, list) else [json.dumps(shown)]
                (folder / ITEMS_FILE).write_text("\n".join(lines) + "\n")
                (folder / ABOUT_FILE).write_text(json.dumps(about | {"sha256": _digests(folder)}))
        return Case(lambda: attempt(folder), shown, (str(folder), "Item"))

    return door


def tables(shop: Shop) -> Door:
    """Two tables of one's own, in every form, with damaged values, columns and bytes."""
    sales = [
        {
            "user_id": f"u{row // 4}",
            "item_id": f"p{row * 5 % 12}",
            "timestamp": 1_709_280_000 + 60 * row,
            "rating": 4.0,
        }
        for row in range(20)
    ]
    other_times = ("2024-03-01", "2024-03-01T10:00:00.123456", "01/12/2024", "nan", "1e30", 1709280000123, "-5", "x")

    def write(rng: random.Random, rows: Any, place: Path) -> Path:
        form = rng.choice(("csv", "csv", "jsonl", "json", "parquet", "csv.gz"))
        path = place / f"{'sales' if 'user_id' in str(rows) else 'products'}.{form}"
        if form == "parquet":
            try:
                pq.write_table(pa.Table.from_pylist(rows), path)
                return path
            except Exception:  # what has no place in Parquet is written as lines of JSON
                path = path.with_suffix(".jsonl")
        rows = rows if isinstance(rows, list) else [rows]
        if form in ("csv", "csv.gz"):
            names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
            mark = rng.choice(",,;\t|")
            lines = [mark.join(names)]
            lines += [
                mark.join(str(row.get(name, "")) if isinstance(row, dict) else str(row) for name in names)
                for row in rows
            ]
            content = "\n".join(lines).encode("utf-8", "surrogatepass")
        elif form == "json":
            content = json.dumps(rows).encode()
        else:
            content = "\n".join(map(json.dumps, rows)).encode()
        if rng.random() < 0.25:
            content = damage_bytes(rng, content)
        with pa.output_stream(str(path)) as file:  # compressed by its name
            file.write(content)
        return path

    def door(rng: random.Random) -> Case:
        place = shop.folder / "tables"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        rows = copy.deepcopy(sales)
        for row in rng.sample(rows, rng.choice((0, 1, 3, len(rows)))):
            row["timestamp"] = rng.choice(other_times)
        which = rng.randrange(3)
        paths = [write(rng, mutate(rng, rows) if which != 1 else rows, place)]
        paths += [write(rng, mutate(rng, ITEMS) if which != 0 else ITEMS, place)]
        shown = [path.read_bytes()[:1500] for path in paths]
        names = (*(path.name for path in paths), "columns", "option", "no interactions", "users", "item")
        return Case(lambda: build("table", None, [str(path) for path in paths]), (paths, shown), names)

    return door


def datasets(shop: Shop) -> Door:
    """Built datasets whose files were damaged."""

    def door(rng: random.Random) -> Case:
        folder = shop.copy_of(shop.dataset)
        shown = spoil(rng, folder / rng.choice(("dataset_info.json", "items.parquet", "sequences.parquet")))
        return Case(lambda: load_dataset_dir(folder), shown, (str(folder),))

    return door


def recipes(shop: Shop) -> Door:
    """The recipes that are shipped, damaged, with damaged settings of the command line."""
    shipped = sorted((ROOT / "recipes").glob("*.yaml"))
    keys = (
        "run.seed",
        "phases.0.lr",
        "phases.0.kind",
        "phases.7.x",
        "data",
        "model.init",
        "run.output_dir.x",
        "",
        "a..b",
    )
    values = (
        "1",
        "-1",
        "[]",
        "{}",
        "null",
        ".nan",
        "1e400",
        "!!timestamp x",
        "!!python/object:os.system x",
        "&a *a",
        "'",
        "[",
    )

    def door(rng: random.Random) -> Case:
        path = shop.folder / "recipe.yaml"
        source = rng.choice(shipped)
        if rng.random() < 0.7:
            tree = mutate(rng, yaml.safe_load(source.read_text()))
            path.write_text(yaml.safe_dump(tree, allow_unicode=False))
        else:
            path.write_bytes(damage_bytes(rng, source.read_bytes()))
        given = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.choice((0, 0, 1, 2)))]
        shown = (path.read_bytes()[:3000], given)
        return Case(lambda: read_recipe(path, given), shown, (str(path), "--set"))

    return door


def checkpoints(shop: Shop) -> Door:
    """Checkpoints with damaged configuration, vocabulary or weights; what opens is asked."""
    files = ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")

    def attempt(folder: Path) -> None:
        pipe = open_pipeline(str(folder))
        pipe.add_items(ITEMS, popularity=range(len(ITEMS)))
        pipe({"history": ["p0"]}, top_k=3)

    def door(rng: random.Random) -> Case:
        reads = rng.random() < 0.7
        folder = shop.copy_of(shop.checkpoint if reads else shop.by_id)
        name = rng.choice(files if reads else ("config.json", "item_ids.json", "model.safetensors"))
        shown = spoil(rng, folder / name)
        return Case(lambda: attempt(folder), shown, (str(folder), *INPUT, "weights", "vector"))

    return door


def histories(shop: Shop) -> Door:
    """Files of histories to the nightly command."""

    def attempt(path: Path, *options: str) -> None:
        out = shop.folder / "answers"
        for place in (out, out.with_name("answers.unfinished")):
            shutil.rmtree(place, ignore_errors=True)
        recommend.main([str(shop.checkpoint), str(shop.catalogue), str(path), "--out", str(out), *options])

    def door(rng: random.Random) -> Case:
        path = shop.folder / "histories.parquet"
        table = {"user_id": ["a", "b"], "history": [["p0", "p1"], ["p2"]]}
        for _ in range(5):
            shown = mutate(rng, table)
            try:
                pq.write_table(pa.table(shown), path)
                break
            except Exception:  # no table
                pq.write_table(pa.table(table), path)
        if rng.random() < 0.3:
            path.write_bytes(damage_bytes(rng, path.read_bytes()))
        options = rng.choice(
            ((), (), ("--part", "0"), ("--most_per", "brand=x"), ("--most_per", "x"), ("--diversity", "9"))
        )
        return Case(
            lambda: attempt(path, *options), (shown, options), (str(path), *INPUT, "--", "diversity", "most_per")
        )

    return door


def requests(shop: Shop) -> Door:
    """Bodies to the service: never a 500, and an error is {"error": sentence}."""
    from fastapi.testclient import TestClient

    from jepa4rec.scripts import serve

    client = TestClient(serve.make_app(serve.Service(shop.pipeline(), str(shop.catalogue), 2)))
    good = {
        "history": ["p0", {"title": "Tent"}],
        "top_k": 3,
        "unknown": "ignore",
        "boosts": {"p1": 0.5},
        "diversity": 0.2,
    }
    several = {
        "histories": [["p0"], [], [{"title": "Tea"}]],
        "filter": ["p1", 2],
        "most_per": {"brand": 1},
        "strict": True,
    }

    def attempt(content: bytes) -> None:
        answer = client.post("/recommend", content=content, headers={"Content-Type": "application/json"})
        body = answer.json()
        if answer.status_code >= 400 and (answer.status_code >= 500 or not isinstance(body.get("error"), str)):
            raise RuntimeError(f"{answer.status_code}: {body}")

    def door(rng: random.Random) -> Case:
        content = json.dumps(mutate(rng, rng.choice((good, several)))).encode()
        content = damage_bytes(rng, content) if rng.random() < 0.3 else content
        return Case(lambda: attempt(content), content[:2000], INPUT)

    return door


def page_events(shop: Shop) -> Door:
    """Events and uploads to the page, as anybody can forge them: it answers every one."""
    import app
    from recommender import Recommender

    page = app.Page(Recommender(shop.pipeline(), "fuzz"))
    said = {"action": "add", "id": "p1"}
    csv = b"item_id,title,brand,popularity\na1,Two-person tent,Northpath,3\na2,Camping stove,Lumo,1\n"
    forged = (page.start, None)

    def door(rng: random.Random) -> Case:
        visit = rng.choice(forged)
        visit = visit and app.replace(visit, history=("p0", "p2")[: rng.randrange(3)], opened=rng.choice((None, "p5")))
        match rng.randrange(5):
            case 0:
                given = mutate(rng, {**said, "action": rng.choice(app.ACTIONS)})
                event = SimpleNamespace(_data=given)
                handler = rng.choice((page._click, page._aim))
                return Case(lambda: handler(visit, event), given, INPUT)
            case 1:
                given = [mutate(rng, value) for value in ("tea", 50, False, 3, True)]
                return Case(lambda: page._settings(visit, *given), given, INPUT)
            case 2:
                given = weird(rng)
                return Case(lambda: page._reveal(visit and app.replace(visit, target="p3"), given), given, INPUT)
            case 3:
                given = weird(rng)
                return Case(lambda: (page._search(visit, given), page._search_target(visit, given)), given, INPUT)
            case _:
                path = shop.folder / "upload.csv"
                path.write_bytes(damage_bytes(rng, csv) if rng.random() < 0.9 else csv)
                given = rng.choice((str(path), str(path), str(path), weird(rng)))
                return Case(lambda: page._upload(visit, given), (given, path.read_bytes()[:1500]), INPUT)

    return door


DOORS: dict[str, Callable[[Shop], Door]] = {
    "texts": texts,
    "settings": settings,
    "questions": questions,
    "catalogues": catalogues,
    "tables": tables,
    "datasets": datasets,
    "recipes": recipes,
    "checkpoints": checkpoints,
    "histories": histories,
    "requests": requests,
    "page events": page_events,
}


# ------------------------------------------------------------------------------------------------ the run


def fuzz(kinds: list[str], seed: int, seconds: float, most: int | None = None, only: int | None = None) -> dict:
    """Cases and findings by kind. Each case has a seed of its own, so it can be had again alone."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    before = signal.signal(signal.SIGPROF, _alarm)
    report = {}
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            shop = Shop(Path(folder))
            for kind in kinds:
                report[kind] = _fuzz_kind(DOORS[kind](shop), kind, seed, seconds, most, only)
    finally:
        signal.signal(signal.SIGPROF, before)
        logging.disable(logging.NOTSET)
    return report


def _fuzz_kind(door: Door, kind: str, seed: int, seconds: float, most: int | None, only: int | None) -> dict:
    started, number, found = time.process_time(), 0, []
    while time.process_time() - started < seconds and (most is None or number < most):
        place = number if only is None else only
        case = door(random.Random(f"{seed}/{kind}/{place}"))
        if problem := finding(case):
            found.append({"case": place, "problem": problem, "input": repr(case.shown)[:3000]})
        number += 1
        if only is not None:
            print(repr(case.shown))
            break
    return {"cases": number, "findings": found, "seconds": round(time.process_time() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(DOORS), default=list(DOORS))
    parser.add_argument("--seconds", type=float, default=20, help="of the processor, for each kind (default: 20)")
    parser.add_argument("--most", type=int, help="cases of each kind at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case of each kind, and what is given to it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = fuzz(options.kinds, options.seed, options.seconds, options.most, options.only)
    for kind, own in report.items():
        print(f"{kind:12} {own['cases']:>7,} inputs, {len(own['findings'])} findings, {own['seconds']} s")
        for one in {one["problem"]: one for one in own["findings"]}.values():
            print(f"    case {one['case']}: {one['problem'][:400]}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"seed": options.seed, "kinds": report}, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(own["findings"] for own in report.values()))


if __name__ == "__main__":
    main()
