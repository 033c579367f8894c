"""Export a checkpoint to what other tools open; nothing of this repository is needed to use the result.

    python scripts/export_checkpoint.py runs/quickstart exported --format onnx
    python scripts/export_checkpoint.py runs/quickstart exported --format sentence-transformers

onnx: encoder.onnx beside the tokenizer, for onnxruntime without torch (docs/serve.md). It is the text encoder: what a
fine-tuned model has learned of its items by id is not in it.

sentence-transformers: a folder for `SentenceTransformer(OUT, trust_remote_code=True)`. Checkpoints written since this
exists open so by themselves; this brings older ones, and those of the Hub, up to date. A Sentence-T5 becomes a folder
as its authors publish theirs, which opens without trust_remote_code and reads plain texts (an item is its tags and
text, `<extra_id_1>TITLE: …<extra_id_2>`).

The outputs are compared with the checkpoint's before anything is kept.
"""

import importlib.util
import logging
import shutil
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "sentence-transformers": ("sentence_transformers",)}
PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("checkpoint", metavar="CKPT", help="a run's folder, a checkpoint's, or its id on the Hub")
PARSER.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
PARSER.add_argument("--format", choices=NEEDS, required=True)
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import numpy as np
from huggingface_hub import snapshot_download

from jepa4rec.hub.opening import (
    ENCODERS,
    check_weights,
    find_checkpoint,
    is_fine_tuned,
    load_tokenizer,
    open_encoder,
    read_config,
    recommendation_class,
)
from jepa4rec.hub.sentence_t5 import write_sentence, write_sentence_t5
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.modeling_seqrec import SeqRecPreTrainedModel
from jepa4rec.modeling_st5rec import St5RecModel
from jepa4rec.serving.pipeline_catalogue import IDS_FILE
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import written_folder
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

TOLERANCE = 1e-4
VectorsOf = Callable[[list], np.ndarray]  # of items, of histories, or of texts
PROBE = [
    {"title": "Green tea, loose leaf", "brand": "Leafwell", "category": "Grocery"},
    {"title": "Ceramic teapot"},
    {"title": "Two-person tent, three seasons, with a porch for boots and a stove", "brand": "Northpath"},
]


def open_checkpoint(place: str) -> tuple[SeqRecPreTrainedModel, ItemSentTokenizer]:
    """Model and tokenizer of a run, a checkpoint or a Hub id; a fine-tuned model comes whole.

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
    fine_tuned = is_fine_tuned(config)
    model = (recommendation_class(folder).from_pretrained if fine_tuned else open_encoder)(folder).eval()
    check_weights(place, model)
    return model, load_tokenizer(str(folder), model)


# ------------------------------------------------------------------------------------------------ formats


def to_onnx(model: SeqRecPreTrainedModel, tokenizer: ItemSentTokenizer, folder: Path) -> VectorsOf:
    """Write graph and tokenizer into `folder`; returns what opens them. Raises ValueError for another encoder."""
    if not isinstance(model, Jepa4RecModel):
        raise ValueError(f"onnx is for JEPA4Rec's own encoder; a {type(model).__name__} goes to sentence-transformers")
    import onnxruntime

    from jepa4rec.hub.onnx import GRAPH_FILE, export_graph

    export_graph(model, folder / GRAPH_FILE)
    tokenizer.save_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])

    def vectors_of(texts: list) -> np.ndarray:
        histories = [text if isinstance(text, list) else [text] for text in texts]
        vectors = session.run(None, dict(tokenizer(histories, return_tensors="np")))[0]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return vectors_of


def to_sentence_transformers(model: SeqRecPreTrainedModel, tokenizer: ItemSentTokenizer, folder: Path) -> VectorsOf:
    """The same for sentence-transformers: the checkpoint again with today's code."""
    from sentence_transformers import SentenceTransformer

    options = {"device": "cpu", "local_files_only": True}
    if isinstance(model, St5RecModel):
        write_sentence_t5(model, tokenizer, folder)
        opened = SentenceTransformer(str(folder), **options)
        written = lambda text: text if isinstance(text, str) else write_sentence(tokenizer, text)  # noqa: E731
        return lambda texts: opened.encode([written(text) for text in texts])
    checkpoint = Path(model.config.name_or_path)
    save_checkpoint_files(model, tokenizer, folder)
    for name in (IDS_FILE, "README.md"):
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, folder)
    return SentenceTransformer(str(folder), trust_remote_code=True, **options).encode


def check_vectors(pipe: SequentialRecommendationPipeline, vectors_of: VectorsOf, plain_texts: bool) -> float:
    """Largest difference between the export's vectors and ours, of items and histories, and of a text too long to be
    read whole where the export reads `plain_texts` alone. Raises ValueError over `TOLERANCE`."""
    ids = list((pipe.known_items or {"rows": ()})["rows"])[:3]
    items = PROBE + [PROBE[0] | {"item_id": item_id} for item_id in ids]
    histories = [PROBE[:1], items, items[::-1]]
    pairs = (pipe.item_vectors(items), vectors_of(items)), (pipe.user_vectors(histories), vectors_of(histories))
    if plain_texts:
        from jepa4rec.serving.embedding_seqrec import ItemSentEmbedding

        long = [" ".join([PROBE[0]["title"]] * pipe.tokenizer.max_tokens)]  # more than is read: where it is cut shows
        reader = ItemSentEmbedding(pipe.model, pipe.tokenizer)
        pairs += ((reader(reader.preprocess(long))["sentence_embedding"], vectors_of(long)),)
    difference = max(float(np.abs(ours.numpy() - theirs).max()) for ours, theirs in pairs)
    if not difference <= TOLERANCE:
        raise ValueError(f"the export's vectors differ from the checkpoint's by {difference:.2g}: nothing was kept.")
    return difference


# ------------------------------------------------------------------------------------------------ command line


@command(PARSER)
def main(options: Namespace) -> None:
    if options.out.exists():
        raise FileExistsError(f"{options.out} already exists: choose another OUT.")
    for package in NEEDS[options.format]:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install -c constraints.txt -e '.[{options.format}]'.")
    model, tokenizer = open_checkpoint(options.checkpoint)
    write = to_sentence_transformers
    if options.format == "onnx":
        if hasattr(model, "history_projection"):
            raise ValueError(
                f"{options.checkpoint}: a graph is of the encoder alone, and histories of this model go through a "
                "projection behind it: export it to sentence-transformers."
            )
        model, write = model.base_model, to_onnx
        model.config.architectures = None  # or the pipeline would fetch the heads again
    if options.format == "onnx" or isinstance(model, St5RecModel):
        model.config.history_decay = None  # what is compared are texts: such a folder reads a history as one
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with written_folder(options.out) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of torch's own insides
        vectors_of = write(model, tokenizer, folder)
        pipe = SequentialRecommendationPipeline(model, tokenizer)
        difference = check_vectors(pipe, vectors_of, plain_texts=isinstance(model, St5RecModel))
    print(f"{options.out}: {options.format}, vectors equal to {difference:.1g}")


if __name__ == "__main__":
    main()
