"""Make this repository itself a model on the Hub: a checkpoint's weights, configuration and tokenizer at its root.

    python scripts/release_model.py runs/jepa4rec_pretrain results/released/*.json

The code is the repository's own, so nothing of it is copied: config.json and modules.json name `serving/` where a
checkpoint's folder is flat. Weights go in float16 and are read as float32. The records' figures become the model-index
in README.md's front matter. sha256.json seals what was copied (`verify_checkpoint.py .`), not the code, which
Git knows. A model that is there already is replaced with --replace only.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("checkpoint", metavar="CKPT", help="a run's folder or a checkpoint's: a text encoder")
PARSER.add_argument("records", metavar="RECORD", nargs="+", type=Path, help="records of this checkpoint")
PARSER.add_argument("--base_model", default="sentence-transformers/all-MiniLM-L6-v2", help="its Hub id")
PARSER.add_argument("--replace", action="store_true", help="replace the model that is released")
PARSER.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
if __name__ == "__main__":
    PARSER.parse_args()

from huggingface_hub import ModelCardData

from jepa4rec.hub.opening import check_weights, find_checkpoint, load_tokenizer, open_encoder
from jepa4rec.model_cards.render import METRICS, eval_result
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import SEAL, digest, write_json, write_text

MOST_BYTES = 50 * 10**6
# What the Hub keeps beside its Git, and what is sealed: no line end may change.
ATTRIBUTES = "/model.safetensors filter=lfs diff=lfs merge=lfs -text\n/*.json -text\n"
NOT_CODE = (".json", ".safetensors")


def release(checkpoint: str, records: list[Path], base_model: str, root: Path, replace: bool) -> list[str]:
    """Write the model into `root`; returns the names of its files.

    Raises:
        ValueError, OSError: no text encoder, weights over the limit, a record of something else, or a model there.
    """
    if (root / "config.json").exists() and not replace:
        raise FileExistsError(f"{root} holds a released model: a better one replaces it with --replace")
    found = find_checkpoint(checkpoint)
    model = open_encoder(found).eval()
    check_weights(found, model)
    told = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    if len({record["model"] for record in told}) > 1:
        raise ValueError(f"the records are of several models: {', '.join(sorted({r['model'] for r in told}))}")
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        save_checkpoint_files(model.half(), load_tokenizer(found, model), staged)
        size = (staged / "model.safetensors").stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{found}: {size:,} bytes of weights are more than the {MOST_BYTES:,} to carry here")
        _point_at_rooms(staged / "config.json", {"dtype": "float32"})
        _point_at_rooms(staged / "modules.json")
        names = sorted(path.name for path in staged.iterdir() if path.suffix in NOT_CODE)
        for name in names:
            shutil.copyfile(staged / name, root / name)
    write_json(root / SEAL, {name: digest(root / name) for name in names})
    write_text(root / ".gitattributes", ATTRIBUTES)
    page = (root / "README.md").read_text(encoding="utf-8")
    write_text(root / "README.md", front_matter(told, base_model) + _body(page))
    return names


def _point_at_rooms(path: Path, changes: dict | None = None) -> None:
    """The classes that a flat checkpoint has beside its weights are in the room `serving/` here."""
    content = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(content | changes if changes else content, indent=2)
    for name in ("pipeline_seqrec.", "embedding_seqrec."):
        text = text.replace(f'"{name}', f'"serving/{name}')
    path.write_text(text + "\n", encoding="utf-8")


def _body(page: str) -> str:
    """README.md without its front matter."""
    return page.partition("\n---\n")[2].lstrip("\n") if page.startswith("---\n") else page


def front_matter(records: list[dict], base_model: str) -> str:
    """The card's YAML header: what it is, where it comes from, and every figure with its dataset's fingerprint."""
    data = ModelCardData(
        model_name=records[0]["model"],
        license="apache-2.0",
        language="en",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        base_model=base_model,
        tags=["sequential-recommendation", "recommendation", "jepa4rec", "sentence-transformers", "custom_code"],
        metrics=list(METRICS),
        eval_results=[eval_result(record, metric) for record in records for metric in METRICS],
    )
    return f"---\n{data}\n---\n\n"


@command(PARSER)
def main(options) -> None:
    names = release(options.checkpoint, options.records, options.base_model, options.root, options.replace)
    print(f"{options.root}: {', '.join(names)}")


if __name__ == "__main__":
    main()
