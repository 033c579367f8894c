"""Export a checkpoint to what other tools open; nothing of this repository is needed to use the result.

    python scripts/export_checkpoint.py runs/quickstart exported --format onnx
    python scripts/export_checkpoint.py runs/quickstart exported --format sentence-transformers

onnx: encoder.onnx, the tokenizer, and serving_onnx.py, which makes item and user vectors with numpy, tokenizers and
onnxruntime alone. The outputs are compared with the checkpoint's before anything is kept.

sentence-transformers: a folder for `SentenceTransformer(OUT, trust_remote_code=True)`. Checkpoints written since this
exists open so by themselves; this brings older ones, and those of the Hub, up to date. A Sentence-T5 becomes a folder
as its authors publish theirs, which opens without trust_remote_code and reads plain texts (an item is its tags and
text, `<extra_id_1>TITLE: …<extra_id_2>`).
"""

import argparse
import importlib.util
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from huggingface_hub import snapshot_download
from transformers import logging as transformers_logging

from jepa4rec.hub.opening import ENCODERS, open_encoder
from jepa4rec.hub.sentence_t5 import write_sentence, write_sentence_t5
from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation
from jepa4rec.modeling_seqrec import SeqRecPreTrainedModel
from jepa4rec.modeling_st5rec import St5RecModel
from jepa4rec.scripts.evaluate_checkpoint import check_weights, find_checkpoint, load_tokenizer, read_config
from jepa4rec.serving.pipeline_catalogue import IDS_FILE
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import written_folder
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

TOLERANCE = 1e-4
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "sentence-transformers": ("sentence_transformers",)}
VectorsOf = Callable[[list[dict], list[list[dict]]], tuple[np.ndarray, np.ndarray]]  # of items, of histories
PROBE = [
    {"title": "Green tea, loose leaf", "brand": "Leafwell", "category": "Grocery"},
    {"title": "Ceramic teapot"},
    {"title": "Two-person tent, three seasons, with a porch for boots and a stove", "brand": "Northpath"},
]


def open_checkpoint(place: str) -> tuple[Path, SeqRecPreTrainedModel, ItemSentTokenizer]:
    """Folder, model and tokenizer of a run, a checkpoint or a Hub id; a fine-tuned model comes whole.

    Raises ValueError or OSError for anything else.
    """
    found = find_checkpoint(place)
    config = read_config(found)
    if config.get("model_type") not in ENCODERS:
        raise ValueError(
            f'{place} is a "{config.get("model_type")}" checkpoint: only those that read texts ('
            f"{', '.join(ENCODERS)}) can be exported."
        )
    folder = Path(found) if Path(found).is_dir() else Path(snapshot_download(found))
    fine_tuned = Jepa4RecForSequentialRecommendation.__name__ in (config.get("architectures") or [])
    model = (Jepa4RecForSequentialRecommendation.from_pretrained if fine_tuned else open_encoder)(folder).eval()
    check_weights(place, model)
    return folder, model, load_tokenizer(str(folder), None, model)


# ------------------------------------------------------------------------------------------------ formats


def to_onnx(model: SeqRecPreTrainedModel, tokenizer: ItemSentTokenizer, checkpoint: Path, folder: Path) -> VectorsOf:
    """Write the export into `folder`; returns what opens it. Raises ValueError for a Sentence-T5."""
    if isinstance(model, St5RecModel):
        raise ValueError("a Sentence-T5 is not exported to onnx here; --format sentence-transformers is.")
    from jepa4rec.hub.onnx import export_onnx
    from jepa4rec.serving.serving_onnx import OnnxEncoder

    export_onnx(model, tokenizer, checkpoint, folder)
    encoder = OnnxEncoder(folder)
    return lambda items, histories: (encoder.item_vectors(items), encoder.user_vectors(histories))


def to_sentence_transformers(
    model: SeqRecPreTrainedModel, tokenizer: ItemSentTokenizer, checkpoint: Path, folder: Path
) -> VectorsOf:
    """The same for sentence-transformers: the checkpoint again with today's code."""
    from sentence_transformers import SentenceTransformer

    if isinstance(model, St5RecModel):
        write_sentence_t5(model, tokenizer, folder)
        opened = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return lambda items, histories: (
            opened.encode([write_sentence(tokenizer, item) for item in items]),
            opened.encode([write_sentence(tokenizer, history) for history in histories]),
        )
    save_checkpoint_files(model, tokenizer, folder)
    for name in (IDS_FILE, "README.md"):
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, folder)
    opened = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", local_files_only=True)
    return lambda items, histories: (opened.encode(items), opened.encode(histories))


FORMATS = {"onnx": to_onnx, "sentence-transformers": to_sentence_transformers}


def check_vectors(pipe: SequentialRecommendationPipeline, vectors_of: VectorsOf) -> float:
    """Largest difference between the export's vectors and ours. Raises ValueError over `TOLERANCE`."""
    ids = list((pipe.known_items or {"rows": ()})["rows"])[:3]
    items = PROBE + [PROBE[0] | {"item_id": item_id} for item_id in ids]
    histories = [PROBE[:1], items, items[::-1]]
    ours, theirs = (pipe.item_vectors(items), pipe.user_vectors(histories)), vectors_of(items, histories)
    difference = max(float(np.abs(a.numpy() - b).max()) for a, b in zip(ours, theirs, strict=True))
    if not difference <= TOLERANCE:
        raise ValueError(f"the export's vectors differ from the checkpoint's by {difference:.2g}: nothing was kept.")
    return difference


# ------------------------------------------------------------------------------------------------ command line


def export(place: str, out: Path, form: str) -> str:
    """Export and check; returns what to tell. Raises ValueError or OSError, one sentence, nothing half-written."""
    if out.exists():
        raise FileExistsError(f"{out} already exists: choose another OUT.")
    for package in NEEDS[form]:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install -c constraints.txt -e '.[{form}]'.")
    checkpoint, model, tokenizer = open_checkpoint(place)
    with written_folder(out) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of torch's own insides
        vectors_of = FORMATS[form](model, tokenizer, checkpoint, folder)
        difference = check_vectors(SequentialRecommendationPipeline(model, tokenizer), vectors_of)
    return f"{out}: {form}, vectors equal to {difference:.1g}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CKPT", help="a run's folder, a checkpoint's, or its id on the Hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    parser.add_argument("--format", choices=FORMATS, required=True)
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        print(export(options.checkpoint, options.out, options.format))
    except (ValueError, OSError) as error:
        sys.exit(f"export_checkpoint: {error}")


if __name__ == "__main__":
    main()
