"""Items per second of `ItemSentTokenizer.encode_items` beside the tokenizer called for every attribute, in one run.

    python benchmarks/tokenization.py meta_data.json --tokenizer sentence-transformers/all-MiniLM-L6-v2 --out out.json

DATA is a JSON file {item id: {attribute: text}} (RecFormer's meta_data.json) or a tab-separated file of item id and
text with a header line (UniSRec's *.text). The slow ways are the one RecFormer uses, `tokenize` and then
`convert_tokens_to_ids` for every name and value, and calling the tokenizer on each. All three must give equal ids.
"""

import json
import os
import platform
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from jepa4rec.tokenization_itemsent import NAME_TYPE, VALUE_TYPE, ItemSentTokenizer, ItemTokens
from jepa4rec.training.command_line import command, command_parser


def read_items(path: Path) -> list[dict[str, str]]:
    """Attributes of every item of DATA. Raises ValueError when it holds none."""
    if path.suffix == ".json":
        items = list(json.loads(path.read_text(encoding="utf-8")).values())
    else:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        items = [{"text": line.partition("\t")[2]} for line in lines]
    if not items:
        raise ValueError(f"{path}: there is no item in it")
    return items


def encode_each_attribute(encode, items: list[dict[str, str]], limit: int) -> ItemTokens:
    """The slow way: `encode` for every name and every value, cut after they are put together."""
    input_ids, token_type_ids, offsets = [], [], [0]
    for item in items:
        for name, value in item.items():
            if value and not value.isspace():
                name_ids, value_ids = encode(name), encode(value)
                input_ids += (name_ids + value_ids)[:limit]
                token_type_ids += ([NAME_TYPE] * len(name_ids) + [VALUE_TYPE] * len(value_ids))[:limit]
        offsets.append(len(input_ids))
    return ItemTokens(np.int32(input_ids), np.int8(token_type_ids), np.int64(offsets))


def ways(tokenizer: PreTrainedTokenizerBase, items: list[dict[str, str]]) -> dict:
    fast = ItemSentTokenizer.wrap(tokenizer)
    limit = fast.max_attribute_tokens
    return {
        "tokenize and convert per attribute": lambda: encode_each_attribute(
            lambda text: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)), items, limit
        ),
        "tokenizer call per attribute": lambda: encode_each_attribute(
            lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], items, limit
        ),
        "encode_items": lambda: fast.encode_items(items),
    }


def measure(tokenizer: PreTrainedTokenizerBase, items: list[dict[str, str]], repeats: int) -> dict:
    """Best seconds of each way, taken in turns so that a busy moment of the machine meets all of them."""
    candidates = ways(tokenizer, items)
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(repeats):
        results = {}
        for name, encode in candidates.items():
            start = time.perf_counter()
            results[name] = encode()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    expected = results["encode_items"]
    for name, result in results.items():
        if not all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True)):
            raise ValueError(f"the ids of {name!r} differ from those of encode_items")
    return {"seconds": seconds, "tokens": int(expected.offsets[-1])}


def report(measured: dict, num_items: int, args) -> dict:
    seconds = measured["seconds"]
    slow = {name: value for name, value in seconds.items() if name != "encode_items"}
    return {
        "data": args.data.name,
        "tokenizer": str(args.tokenizer),
        "items": num_items,
        "tokens": measured["tokens"],
        "items_per_second": {name: round(num_items / value) for name, value in seconds.items()},
        "speedup": {name: round(value / seconds["encode_items"], 2) for name, value in slow.items()},
        "equal_ids": True,
        "repeats": args.repeats,
        "threads": int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count())),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def show(result: dict) -> None:
    print(f"{result['data']}: {result['items']} items, {result['tokens']} tokens, {result['threads']} threads")
    for name, rate in result["items_per_second"].items():
        ratio = result["speedup"].get(name)
        print(f"  {name:36s} {rate:>9,} items/s" + (f"   encode_items is {ratio:.1f}x as fast" if ratio else ""))


PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("data", type=Path)
PARSER.add_argument("--tokenizer", required=True, help="folder or Hub id of a fast tokenizer")
PARSER.add_argument("--repeats", type=int, default=5, help="the best of this many runs counts")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")


@command(PARSER)
def main(args: Namespace) -> None:
    items = read_items(args.data)
    result = report(measure(AutoTokenizer.from_pretrained(args.tokenizer), items, args.repeats), len(items), args)
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
