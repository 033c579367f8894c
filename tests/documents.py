"""Runs the commands and blocks of README.md and docs/ as they are written, on things small enough for a test.

Every document gets a desk: a folder with the checkout's programs, made-up files under the names that the documents
use, and a Hub on loopback. Commands run in the order in which they stand. Trainings are cut to two steps of a tiny
model after the recipe and the settings were read as written; nothing else is changed but what `Desk.small` says.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from conftest import ROOT
from hub_server import run_client
from processes import python

from jepa4rec import train_accelerate
from jepa4rec.baselines import BASELINE_MODELS
from jepa4rec.datasets_builders.contract import load_dataset_dir
from jepa4rec.training.phases.pretrain import PretrainPhase
from jepa4rec.training.phases.sequence import SequencePhase
from jepa4rec.training.recipe import Recipe, read_recipe

PROGRAMS = ("benchmarks", "constraints.txt", "pyproject.toml", "recipes", "scripts", "serving", "studies")
# The repository is a model too: `model="."` opens it.
RELEASED = (
    "config.json",
    "model.safetensors",
    "modules.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sha256.json",
)
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TINY_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "projection_size": 16}
RECFORMER_HEADS = 4  # the published files have 64 numbers a head, these fewer
# Running these here would be running this, take an hour, or serve a page for ever (test_space.py does).
ONLY_PLANNED = ("make test", "make check", "make bench", "make demo", "make spark")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """Every shell command of a block, comments left out, lines that end in a backslash joined."""
    lines = [line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def steps(text: str) -> list[tuple[str, str]]:
    """What there is to run: ("python", code) and ("bash", one command), in order."""
    # A block that names its file is written there and run by test_extend.py.
    found = re.findall(r"^```(python|bash)\n(?!# \w+/\S+\.py\n)(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [
        (language, step)
        for language, block in found
        for step in ([block] if language == "python" else commands(block))
    ]


class Desk:
    """A folder to work in. `run` takes one command as written and raises when it fails."""

    def __init__(self, folder: Path, monkeypatch, hub):
        self.folder, self.monkeypatch, self.hub = folder, monkeypatch, hub
        self.trained: list[Recipe] = []
        for name in (*PROGRAMS, *RELEASED, *(path.name for path in ROOT.glob("*.py"))):
            (folder / name).symlink_to(ROOT / name)
        monkeypatch.chdir(folder)

    def run(self, command: str) -> None:
        words = shlex.split(command)
        while "=" in words[0]:
            words.pop(0)  # an environment for launched processes
        if words[0] == "make":
            self.make(words[1:])
        elif words[:2] == ["accelerate", "launch"]:
            self.train(words[2:])
        elif words[0] == "python":
            self.script(words[1:])
        else:
            raise AssertionError(f"nobody knows how to run this in a test: {command}")

    # ---- training

    def train(self, words: list[str]) -> None:
        """Accelerate's own parser reads the launch, its own reader the configuration; the recipe trains in here."""
        launch = launch_command_parser().parse_args(words)
        assert launch.training_script == "train_accelerate.py"
        if launch.config_file:
            load_config_from_file(launch.config_file)
        parser_words = launch.training_script_args
        settings = [word for before, word in zip(parser_words, parser_words[1:], strict=False) if before == "--set"]
        chosen = parser_words[parser_words.index("--recipe") + 1] if "--recipe" in parser_words else None
        assert len(parser_words) == 2 * (len(settings) + bool(chosen)), f"neither --recipe nor --set: {parser_words}"
        recipe = chosen or train_accelerate.QUICKSTART
        smaller = read_recipe(recipe, [*settings, *self.small(read_recipe(recipe, settings))])
        if smaller in self.trained:  # once it is small, another launch of the same
            return
        self.trained.append(smaller)
        AcceleratorState._reset_state(reset_partial_state=True)
        train_accelerate.run(smaller)

    def small(self, recipe: Recipe) -> list[str]:
        """Settings that cut a run down: two steps a phase of a tiny model, made-up data in place of downloads."""
        settings = ["run.save_every=0", "run.telemetry_every=0", "run.activation_checkpointing=false"]
        if not recipe.run.resume:
            settings.append("run.overwrite=true")
        for place, phase in enumerate(recipe.phases):
            size = {"steps": 2, "batch_size": 4, "gradient_accumulation": 1, "evaluate_every_epochs": 0}
            if isinstance(phase, SequencePhase):
                size["batch_size"] = 8
            elif isinstance(phase, PretrainPhase):
                size |= {"evaluate_every_steps": "null", "freeze_layers": 0}
            else:
                size["freeze_layers"] = 0
            settings += [f"phases.{place}.{name}={value}" for name, value in size.items()]
        if recipe.data.name not in (None, "toy_shop"):
            settings += ["data.name=null", "data.config=null", "data.dir=data/online_retail"]
        settings += ["evaluation.validation_users=10"]
        reads = not recipe.model.baseline or getattr(BASELINE_MODELS[recipe.model.baseline], "reads_texts", False)
        starts = reads and Path(recipe.model.init).exists()  # with vectors as wide as they are
        if recipe.model.baseline and not starts:
            settings += ["model.config.hidden_size=16", "model.config.num_attention_heads=2"]
        if reads and not starts:
            settings += ["model.init=scratch", "tokenizer.vocab_size=400"]
            if not recipe.model.baseline:  # a whitening stands behind trained weights alone, which these are not
                settings.append("model.whitening=null")
        if not recipe.model.baseline and not Path(recipe.model.init).exists():
            shape = TINY_T5 if recipe.model.family == "st5rec" else TINY
            settings += [f"model.config.{name}={value}" for name, value in shape.items()]
        return settings

    # ---- everything else

    def script(self, words: list[str]) -> None:
        """A script in this process; in one of its own where it speaks to the Hub, which is then the loopback one."""
        assert (self.folder / words[0]).is_file(), f"{words[0]} does not exist"
        if "--push" in words or words[0].endswith(("push_to_hub.py", "import_checkpoint.py")):
            if words[1].startswith("recformer"):
                words = [*words, "--num_attention_heads", str(RECFORMER_HEADS)]
            done = run_client(self.hub.url, self.folder, *words)
            assert not done.returncode, done.stdout + done.stderr
            return
        if words[0] == "scripts/campaign.py":  # its runs have the recipes as written, those made here are small
            shutil.move("runs", "smaller_runs")
        module = importlib.import_module("jepa4rec." + words[0].removesuffix(".py").replace("/", "."))
        if words[0].startswith("studies/"):
            assert load_dataset_dir(words[words.index("--data") + 1]).num_users
            smaller = (f"base={self.tiny_base()}", "min_users=1")
            words = [*words, "--data", "data/walks", *(word for setting in smaller for word in ("--set", setting))]
        if words[0] == "scripts/search_settings.py":
            smaller = self.small(read_recipe(words[words.index("--recipe") + 1]))
            words += [word for setting in smaller for word in ("--set", setting)]
        if words[0].startswith("benchmarks/catalogue"):
            words = [*words, "--sizes", "50", "--queries", "5", "--indexes", "exact"]
        if "--engine" in words:  # starting Spark takes longer than the page: test_engines.py gives this command to it
            place = words.index("--engine")
            assert words[place:] == ["--engine", "spark"]
            words = words[:place]
        self.monkeypatch.setattr(sys, "argv", words)
        module.main()
        if words[0] == "scripts/campaign.py":
            shutil.move("smaller_runs", "runs")

    def tiny_base(self) -> Path:
        """The run that studies repeat, smaller still."""
        tree = yaml.safe_load((ROOT / "recipes/studies/small.yaml").read_text(encoding="utf-8"))
        tree["model"]["config"] = TINY
        tree["tokenizer"]["vocab_size"] = 400
        for phase in tree["phases"]:
            phase |= {"steps": 2, "batch_size": 8}
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def make(self, words: list[str]) -> None:
        """A target with this environment, in here instead of the checkout; the quickstart stops after two steps."""
        planned = ["--dry-run"] if f"make {words[0]}" in ONLY_PLANNED else []
        if words[0] == "quickstart":
            given = next((word.removeprefix("SET=") for word in words if word.startswith("SET=")), "")
            short = [f"phases.{phase}.steps=2" for phase in (0, 1)]
            words = [*words, "SET=" + " ".join([given, *short, *(f"model.config.{k}={v}" for k, v in TINY.items())])]
        made = [f"VENV={Path(sys.prefix)}", "-o", f"{sys.prefix}/.run", "-o", f"{sys.prefix}/.dev"]
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        launcher = f'#!/bin/sh\nexec {python()} {sys.prefix}/bin/accelerate "$@"\n'
        for name, content in {"python": f'#!/bin/sh\nexec {python()} "$@"\n', "accelerate": launcher}.items():
            (programs / name).write_text(content, encoding="utf-8")
            (programs / name).chmod(0o755)
        made += [f"BIN={programs}"]
        done = subprocess.run(
            ["make", "-f", str(ROOT / "Makefile"), *planned, *made, *words],
            cwd=self.folder, capture_output=True, text=True, env={**os.environ, "MAKEFLAGS": ""},
        )  # fmt: skip
        assert not done.returncode, done.stdout + done.stderr
