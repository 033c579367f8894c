"""The few commands that most people need, each a script of its own: `jepa4rec COMMAND --help` says more."""

import runpy
import sys

COMMANDS = {
    "build": ("scripts.build_dataset", "raw files, or an invented shop, become a dataset"),
    "train": (
        "train_accelerate",
        "a recipe becomes a checkpoint with its numbers",
    ),
    "evaluate": ("scripts.evaluate_checkpoint", "any checkpoint ranks the catalogue of any dataset"),
    "recommend": ("scripts.show_recommendations", "what a checkpoint recommends to a few users, in words"),
    "verify": ("scripts.verify_checkpoint", "which file of a checkpoint is not what was published"),
    "push": ("scripts.push_to_hub", "a checkpoint goes to the Hub, after it was checked as a stranger would use it"),
}


def main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
        print("\n".join(["usage: jepa4rec COMMAND ...", "", __doc__, "", *lines]))
    elif name not in COMMANDS:
        sys.exit(f"jepa4rec: there is no command {name}; there are {', '.join(COMMANDS)}")
    else:
        sys.argv[1:] = rest
        runpy.run_module(f"jepa4rec.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
