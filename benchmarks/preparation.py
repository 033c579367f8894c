"""Out of core: rows per second and peak memory of building a dataset, beside plain Python doing the same job.

    python benchmarks/preparation.py --reviews 10000000 --plain_reviews 1000000 --out preparation.json

Reviews and metadata are generated in the schema of Amazon Reviews 2023 (JSON lines). Ours is
`scripts/build_dataset.py amazon_reviews_2023 --config 5core` in a process of its own; the peer is what the field's
preprocessing scripts do: json.loads line by line into dictionaries and lists, first review of a pair, iterative
5-core, sort, join with the cleaned texts, write, hash. Both build the same dataset from `plain_reviews` (their counts
are compared), ours also from `reviews`, beside the peer's rows a second from fewer. Seconds are of the clock
(ours uses all cores, plain Python has one) and of the processor, summed over cores: where others use the machine too,
only the latter say what a way costs. Ours includes starting the program. Peak memory is the largest resident size of
the process, in GiB.
"""

import hashlib
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from jepa4rec.datasets_builders.amazon_reviews_2023 import clean_text
from jepa4rec.training.command_line import command, command_parser

WORDS = "soap brush cream oil spray bottle shea mint rose glass travel set kit organic large small pack refill".split()
BLOCK = 200_000


def write_reviews(path: Path, reviews: int, items: int, seed: int) -> None:
    """Users review 1 to about 30 items, items are as popular as a Zipf law has it; lines in random order of time."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, items + 1) ** 0.8
    cumulative = np.cumsum(weights / weights.sum())
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, reviews, BLOCK):
            count = min(BLOCK, reviews - start)
            users = (rng.random(count) ** 2.2 * (reviews // 4)).astype(int)
            products = np.searchsorted(cumulative, rng.random(count))
            times = rng.integers(1_400_000_000_000, 1_690_000_000_000, count)
            stars = rng.integers(1, 6, count)
            file.writelines(
                f'{{"rating": {star}.0, "title": "Fine", "text": "Does what it should, mostly.", "images": [], '
                f'"asin": "B{item:09d}", "parent_asin": "B{item:09d}", "user_id": "A{user:011d}", '
                f'"timestamp": {when}, "helpful_vote": 0, "verified_purchase": true}}\n'
                for user, item, when, star in zip(users, products, times, stars, strict=True)
            )


def write_metadata(path: Path, items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = rng.choice(WORDS, (items, 8))
    with open(path, "w", encoding="utf-8") as file:
        for item, row in enumerate(words):
            title, description = " ".join(row), " ".join(row[::-1])
            line = {
                "main_category": "All Beauty", "title": title + (" &amp; more" if item % 8 == 0 else ""),
                "features": [], "description": [f"<p>{description}</p>" if item % 8 == 1 else description],
                "price": None, "store": f"Store {item % 977}", "categories": ["Beauty", str(row[0])],
                "details": {"Brand": f"Brand {item % 1009}"}, "parent_asin": f"B{item:09d}",
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")


# ---------------------------------------------------------------------------------------------- both ways


def build_in_plain_python(reviews: Path, metadata: Path, out: Path) -> dict:
    """The same dataset by dictionaries and lists."""
    first = {}
    for row, line in enumerate(open(reviews, encoding="utf-8")):
        review = json.loads(line)
        pair, found = (review["user_id"], review["parent_asin"]), (review["timestamp"], row, review["rating"])
        if pair not in first or found < first[pair]:
            first[pair] = found
    pairs = {pair: found for pair, found in first.items()}
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
        kept = {pair: found for pair, found in pairs.items() if users[pair[0]] >= 5 and items[pair[1]] >= 5}
        if len(kept) == len(pairs):
            break
        pairs = kept
    texts, index = {}, {}
    wanted = {item for _, item in pairs}
    for line in open(metadata, encoding="utf-8"):
        item = json.loads(line)
        if item["parent_asin"] in wanted:
            brand = item["details"].get("Brand") or item["store"]
            fields = (item["title"], brand, " ".join(item["categories"]), " ".join(item["description"]))
            index[item["parent_asin"]] = len(index)
            texts[item["parent_asin"]] = tuple(map(clean_text, fields))
    sequences = {}
    for (user, item), (when, row, rating) in pairs.items():
        sequences.setdefault(user, []).append((when, row, index[item], rating))
    rows = [(user, sorted(events)) for user, events in sequences.items()]
    digest = hashlib.sha256()
    for user, events in rows:
        digest.update(user.encode())
        digest.update(np.array([event[2] for event in events], np.int32).tobytes())
    for item, fields in texts.items():
        digest.update("\0".join((item, *fields)).encode())
    out.mkdir()
    pq.write_table(pa.table({"item_id": list(texts), "title": [t[0] for t in texts.values()]}), out / "items.parquet")
    lists = {"user_id": [user for user, _ in rows], "items": [[event[2] for event in events] for _, events in rows]}
    pq.write_table(pa.table(lists), out / "sequences.parquet")
    return {"users": len(rows), "items": len(texts), "interactions": len(pairs), "hash": digest.hexdigest()}


def plain(reviews: Path, metadata: Path, out: Path) -> dict:
    """`build_in_plain_python` in a process of its own: counts, seconds, peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed_plain, (reviews, metadata, out))


def _timed_plain(reviews: Path, metadata: Path, out: Path) -> dict:
    start, started = time.perf_counter(), time.process_time()
    counts = build_in_plain_python(reviews, metadata, out)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**counts, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": peak}


def ours(reviews: Path, metadata: Path, out: Path) -> dict:
    """`scripts/build_dataset.py`: counts, seconds, peak memory."""
    command = [sys.executable, str(ROOT / "scripts" / "build_dataset.py"), "amazon_reviews_2023", "--config", "5core"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--data_files", str(reviews), str(metadata), "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise OSError(f"build_dataset.py ended with {os.waitstatus_to_exitcode(status)}")
    counts = json.loads(printed.splitlines()[-1])
    seconds = time.perf_counter() - start
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return {**counts, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": usage.ru_maxrss / 2**20}


def measure(folder: Path, args: Namespace) -> dict:
    results = {}
    for size in sorted({args.plain_reviews, args.reviews}):
        items = max(50, size // 30)
        reviews, metadata = folder / f"All_Beauty.{size}.jsonl", folder / f"meta_All_Beauty.{size}.jsonl"
        write_reviews(reviews, size, items, args.seed)
        write_metadata(metadata, items, args.seed)
        runs = {"ours": ours(reviews, metadata, folder / f"ours-{size}")}
        if size == args.plain_reviews:
            runs["plain Python"] = plain(reviews, metadata, folder / f"plain-{size}")
            if any(runs["ours"][name] != runs["plain Python"][name] for name in ("users", "items", "interactions")):
                raise ValueError(f"the two ways do not agree: {runs}")
        for name, run in runs.items():
            run["rows_per_second"] = size / run["seconds"]
            run["rows_per_cpu_second"] = size / run["cpu_seconds"]
            print(
                f"{size:>11,} reviews, {name:12s} {run['seconds']:8.1f} s {run['rows_per_second']:>10,.0f} rows/s, "
                f"{run['cpu_seconds']:.1f} CPU s, {run['rows_per_cpu_second']:,.0f} rows/CPU s, "
                f"peak {run['peak_gib']:.2f} GiB, {run['users']} users, {run['interactions']} interactions", flush=True
            )  # fmt: skip
        results[str(size)] = runs
        reviews.unlink()
    peer = results[str(args.plain_reviews)]["plain Python"]
    speedup = {
        measure: {size: runs["ours"][measure] / peer[measure] for size, runs in results.items()}
        for measure in ("rows_per_second", "rows_per_cpu_second")
    }
    print(f"beside plain Python: {json.dumps(speedup)}")
    return {"runs": results, "speedup": speedup}


PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--reviews", type=int, default=10_000_000)
PARSER.add_argument("--plain_reviews", type=int, default=1_000_000, help="what the peer is given too")
PARSER.add_argument("--seed", type=int, default=0)
PARSER.add_argument("--folder", type=Path, help="where to write the files (default: a temporary folder)")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")


@command(PARSER)
def main(args: Namespace) -> None:
    from jepa4rec.evaluation.records import describe_run  # brings torch, which neither way of building needs

    with tempfile.TemporaryDirectory(prefix="preparation-", dir=args.folder) as folder:
        result = measure(Path(folder), args)
    versions = {"python": platform.python_version(), "duckdb": duckdb.__version__, "ibis": ibis.__version__}
    sizes = {"reviews": args.reviews, "plain_reviews": args.plain_reviews}
    report = {**describe_run(), **versions, **sizes, **result}
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
