"""Pictures of a run: files that are pictures, labels that can be told apart, clear words instead of a trace."""

import json
import shutil

import numpy as np
import pytest

from jepa4rec.datasets_builders.contract import load_dataset_dir
from jepa4rec.scripts.draw_pictures import few_labels, main, user_labels
from tests.training.test_train_accelerate import ST5, shop, train, write_recipe  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow("trains, then maps by t-SNE")

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def test_a_run_is_drawn(write_recipe, shop, tmp_path, capsys):  # noqa: F811
    train(write_recipe([]), *ST5)
    run = tmp_path / "run"
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "metrics.json").write_text((run / "metrics.json").read_text().replace('"model": "run"', '"model": "two"'))
    main([str(run), str(shop), "--colour_by", "category", "--points", "30", "--beside", str(other)])
    assert "wrote" in capsys.readouterr().out
    pictures = run / "pictures"
    assert sorted(path.name for path in pictures.iterdir()) == [
        "figures.json", "groups.png", "history_length.png", "items.png", "users.png",
    ]  # fmt: skip
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in pictures.glob("*.png"))
    figures = json.loads((pictures / "figures.json").read_text())
    assert list(figures) == ["category", "history_length"]
    assert all(list(own) == ["run", "two", "popularity", "item-transition"] for own in figures.values())
    assert figures["category"]["two"] == figures["category"]["run"]
    [figure] = figures["history_length"]["item-transition"].values()  # all histories are equally long
    assert figure["mean"] == 1.0  # every walk goes round in order
    gru = ["phases=[{kind: sequence, steps: 2, batch_size: 8}]", "model={baseline: gru4rec, config: {hidden_size: 8}}"]
    train(write_recipe([]), *gru, "tokenizer={}", f"run.output_dir={tmp_path / 'gru'}", "run.name=GRU4Rec")
    beside = ["--beside", str(tmp_path / "gru"), "--out", str(tmp_path / "both")]
    main([str(run), str(shop), "--colour_by", "category", "--points", "30", *beside])
    alone, both = (read_png_width(folder / "items.png") for folder in (pictures, tmp_path / "both"))
    assert both == alone  # two maps each: the other text model's, and GRU4Rec's
    for arguments, message in (
        ([str(run), str(shop)], "items have no domain to be coloured by: choose --colour_by title, brand, category"),
        ([str(tmp_path), str(shop), "--colour_by", "brand"], "is not the folder of a finished run"),
        ([str(run), str(shop), "--colour_by", "brand", "--beside", str(run)], "is called run, as another run here"),
    ):
        with pytest.raises(SystemExit, match=f"^draw_pictures: .*{message}"):
            main([*arguments, "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def read_png_width(path) -> int:
    return int.from_bytes(path.read_bytes()[16:20], "big")


def test_rare_labels_share_a_colour():
    labels = np.array(["a"] * 5 + ["b"] * 4 + [f"c{i}" for i in range(9)] + [""] * 3, dtype=object)
    kept = few_labels(labels)
    assert len(set(kept)) == 10 and kept[0] == "a" and kept[-1] == "(none)" and (kept == "other").sum() == 3


def test_users_have_their_own_domain_or_their_newest_items_label(shop):  # noqa: F811
    dataset = load_dataset_dir(shop)
    histories = [np.array([0, 2]), np.array([1])]
    labels = np.array(["x", "y", "z", *"w" * 9])
    assert user_labels(dataset, labels, "brand", ["0", "1"], histories).tolist() == ["z", "y"]
    told = dataset.sequences.append_column("domain", [[f"d{u % 2}" for u in range(40)]])
    own = user_labels(type(dataset)(dataset.items, told, dataset.info), labels, "domain", ["0", "1"], histories)
    assert own.tolist() == ["d0", "d1"]
