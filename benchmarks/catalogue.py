"""Searching a catalogue: every index at several sizes, its latency, memory and recall beside exact search.

    python benchmarks/catalogue.py --out results/benchmarks/catalogue.json
    python benchmarks/catalogue.py --sizes 100000 --indexes exact --checkpoint CKPT    also: 1,000 new items by text

Vectors are synthetic, 384 wide: an item is one of N / 50 random centres plus noise as long as the centre, a query an
item plus half as much noise. One query is asked at a time, on one thread, as a shop's page does, and its CPU time
taken; `--threads` is for building. Every size and index has a process of its own: `serving_gib` is what that process
holds, more than before, when the last query is answered (all keep the float32 vectors, for the exact scores of the
answers), `peak_gib` the most it ever held, making the vectors included.
Exact search is also timed in turns with FAISS's own exact index (IndexFlatIP) over the same vectors, for one query and
for several at once: CPU time on one thread, the median. As it is shipped, FAISS takes single dots for as many as 64
queries; it is also timed told to multiply matrices.
Prints one JSON object, and writes it to `--out` where given, with a page to read (.md) beside it.
"""

import json
import os
import subprocess
import sys
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.benchmarks.ranking import WIDTH, peak_gib, random_vectors, timed
from jepa4rec.evaluation.records import describe_run
from jepa4rec.serving.catalogue_seqrec import INDEXES, Catalogue
from jepa4rec.serving.whole_files_seqrec import write_json
from jepa4rec.training.command_line import command, command_parser

SIZES = (10_000, 100_000, 1_000_000)
ITEMS_A_CENTRE = 50
K = 10
AT_ONCE = (1, 8, 64, 512)  # queries, beside FAISS's exact index
BLAS_FROM = 20  # its threshold, for matrix products in every case here
FLAT = "flat"
NEW_ITEMS = 1000
HASH = "synthetic"


def clustered_vectors(number: int, generator: torch.Generator) -> Tensor:
    """(number, WIDTH) float32 around centres, written in place but for one block."""
    centres = random_vectors(max(1, number // ITEMS_A_CENTRE), generator)
    vectors = random_vectors(number, generator)
    for part in vectors.split(65536):
        part += centres[torch.randint(len(centres), (len(part),), generator=generator)]
    return vectors


def measure_index(size: int, index: str, rescore: int, queries: int) -> dict:
    """Fill a catalogue, ask it one query at a time, add 1,000 items and ask again."""
    process = psutil.Process()
    before, generator = process.memory_info().rss, torch.Generator().manual_seed(0)
    vectors = clustered_vectors(size, generator)
    chosen = torch.randint(size, (queries,), generator=generator)
    asked = vectors[chosen] + 0.5 * random_vectors(queries, generator)
    catalogue = Catalogue(HASH, WIDTH, index, rescore)
    catalogue.add([f"i{row}" for row in range(size)], [{}] * size, vectors, None)
    del vectors
    _, building = timed(catalogue.search, asked[:1], K)  # the first search builds the index
    set_threads(1)
    found, latencies = zip(*(cpu_timed(catalogue.search, query[None], K) for query in asked), strict=True)
    serving, peak = process.memory_info().rss - before, peak_gib()
    _, adding = timed(add_new, catalogue, asked[:1], generator)
    catalogue.remove([f"new{row}" for row in range(NEW_ITEMS)])
    exact = replace(catalogue.snapshot(), index="exact").search(asked, K)[1]
    return {
        "items": size,
        "index": index,
        "rescore": rescore if index != "exact" else None,
        "p50_ms": round(1000 * float(np.percentile(latencies, 50)), 2),
        "p99_ms": round(1000 * float(np.percentile(latencies, 99)), 2),
        "recall@10": round(recall([rows[0] for _, rows in found], exact), 4),
        "first_search_seconds": round(building, 2),
        "add_1000_and_search_seconds": round(adding, 3),
        "vectors_gib": round(size * WIDTH * 4 / 2**30, 3),
        "serving_gib": round(serving / 2**30, 2),
        "peak_gib": round(peak, 2),
    }


def cpu_timed(function: Callable, *arguments) -> tuple[Any, float]:
    """What a call on one thread gives and the CPU seconds it took: its latency where nobody else is at work."""
    started = time.process_time()
    return function(*arguments), time.process_time() - started


def beside_flat(size: int) -> list[dict]:
    """Exact search and FAISS's IndexFlatIP in turns over the same vectors: CPU milliseconds a call, medians."""
    import faiss

    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(clustered_vectors(size, generator), dim=1)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors.numpy())
    catalogue = Catalogue(HASH, WIDTH)
    catalogue.add([f"i{row}" for row in range(size)], [{}] * size, vectors, None)
    set_threads(1)
    measured, shipped = [], faiss.cvar.distance_compute_blas_threshold
    for at_once in AT_ONCE:
        asked = torch.nn.functional.normalize(random_vectors(at_once, generator), dim=1)
        turns = max(15, min(50, 2 * 10**7 // (size * at_once)))

        def by_faiss(threshold: int) -> None:
            faiss.cvar.distance_compute_blas_threshold = threshold
            flat.search(asked.numpy(), K)  # noqa: B023

        ways = {
            "exact_ms": lambda: catalogue.search(asked, K),  # noqa: B023
            "flat_ms": lambda: by_faiss(shipped),
            "flat_blas_ms": lambda: by_faiss(BLAS_FROM),
        }
        seconds = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                started = time.process_time()
                way()
                seconds[name].append(time.process_time() - started)
        own = {name: round(1000 * float(np.median(values)), 2) for name, values in seconds.items()}
        measured.append({"items": size, "at_once": at_once, "turns": turns, **own})
    return measured


def add_new(catalogue: Catalogue, query: Tensor, generator: torch.Generator) -> None:
    """What a shop waits for: 1,000 new items with their vectors, until the first answer from all."""
    new = [f"new{row}" for row in range(NEW_ITEMS)]
    catalogue.add(new, [{}] * NEW_ITEMS, random_vectors(NEW_ITEMS, generator), None)
    catalogue.search(query, K)


def recall(found: list[np.ndarray], exact: np.ndarray) -> float:
    """Share of the exact top K that was found."""
    return float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, exact, strict=True)]))


def add_by_text(checkpoint: str, size: int) -> dict:
    """1,000 items a checkpoint never saw, from their texts to the first answer, in a catalogue of `size`."""
    from transformers import pipeline

    pipe = pipeline("sequential-recommendation", model=checkpoint, trust_remote_code=True)
    vectors = random_vectors(size, torch.Generator().manual_seed(0))[:, : pipe.model.config.hidden_size]
    pipe.catalogue.add([f"i{row}" for row in range(size)], [{"title": "old"}] * size, vectors, None)
    items = [
        {"item_id": f"new{row}", "title": f"Stoneware mug {row}, glazed blue, 350 ml", "brand": "Hearth & Vale",
         "category": f"Kitchen, cups and mugs, series {row % 37}"}
        for row in range(NEW_ITEMS)
    ]  # fmt: skip
    started = time.perf_counter()
    pipe.add_items(items)
    pipe({"history": ["new0"]}, top_k=K)
    return {"items": size, "new_items": NEW_ITEMS, "seconds": round(time.perf_counter() - started, 2)}


COLUMNS = {
    "items": ("items", "{:,}"),
    "index": ("index", "{}"),
    "p50_ms": ("p50, ms", "{:.1f}"),
    "p99_ms": ("p99, ms", "{:.1f}"),
    "recall@10": ("recall@10", "{:.3f}"),
    "serving_gib": ("GiB held", "{:.2f}"),
    "first_search_seconds": ("building, s", "{:.1f}"),
    "add_1000_and_search_seconds": ("1,000 more, s", "{:.2f}"),
}


def page(result: dict) -> str:
    """The result for people, as Markdown."""
    rows = [[form.format(own[name]) for name, (_, form) in COLUMNS.items()] for own in result["searches"]]
    table = [[title for title, _ in COLUMNS.values()], ["---:", "---"] + ["---:"] * (len(COLUMNS) - 2), *rows]
    lines = [
        "# Searching a catalogue",
        "",
        f"One query at a time on one thread, {result['queries']} of them, by CPU time, vectors of {result['width']} "
        "numbers. The answers of faiss and binary are re-ranked exactly. Recall is the share of the exact ten best "
        f"that was found; building, on {result['threads']} threads, is the first search; the last column adds 1,000 "
        "vectors and searches. Written by `benchmarks/catalogue.py`, which says what the vectors are.",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
    ]
    if result.get("beside_faiss_flat"):
        lines += ["", "Exact search in turns with FAISS's IndexFlatIP, CPU time of a call on one thread:", ""]
        lines += ["| items | queries at once | exact, ms | FAISS Flat, ms | the same, told to multiply matrices |"]
        lines += ["| ---: | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {own['items']:,} | {own['at_once']} | {own['exact_ms']:.1f} | {own['flat_ms']:.1f} "
            f"| {own['flat_blas_ms']:.1f} |"
            for own in result["beside_faiss_flat"]
        ]
    for own in result.get("new_items_by_text", []):
        added = f"{own['new_items']:,} new items by their texts to {own['items']:,}"
        lines += ["", f"Adding {added}, the first answer included: {own['seconds']:.1f} s."]
    return "\n".join(lines) + "\n"


def in_own_process(options: Namespace, size: int, index: str) -> dict | list[dict]:
    command = [sys.executable, __file__, "--one", index, "--sizes", str(size), "--queries", str(options.queries)]
    command += ["--rescore", str(options.rescore), "--threads", str(options.threads)]
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's, which can be told nowhere else
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=one_thread)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(threads)


PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="items (default: 10k, 100k, 1M)")
PARSER.add_argument("--indexes", nargs="+", choices=INDEXES, default=list(INDEXES))
PARSER.add_argument("--rescore", type=int, default=4, help="candidates an answer, re-ranked exactly (default: 4)")
PARSER.add_argument("--queries", type=int, default=500, help="default: 500")
PARSER.add_argument("--threads", type=int, default=2, help="that build an index (default: 2); one searches")
PARSER.add_argument("--checkpoint", help="also time 1,000 new items by text, in a catalogue of each size")
PARSER.add_argument("--out", type=Path, help="JSON file")
PARSER.add_argument("--one", choices=(*INDEXES, FLAT), help=SUPPRESS)


@command(PARSER)
def main(options: Namespace) -> None:
    set_threads(options.threads)
    if options.one == FLAT:
        print(json.dumps(beside_flat(options.sizes[0])))
        return
    if options.one:
        print(json.dumps(measure_index(options.sizes[0], options.one, options.rescore, options.queries)))
        return
    result = {**describe_run(), "width": WIDTH, "threads": options.threads, "queries": options.queries}
    result["searches"] = [in_own_process(options, size, index) for size in options.sizes for index in options.indexes]
    if find_spec("faiss"):
        result["beside_faiss_flat"] = [own for size in options.sizes for own in in_own_process(options, size, FLAT)]
    if options.checkpoint:
        result["new_items_by_text"] = [add_by_text(options.checkpoint, size) for size in options.sizes]
    print(json.dumps(result))
    if options.out:
        write_json(options.out, result)
        options.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
