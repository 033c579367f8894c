"""Trained baselines: what each may see, what it learns, one loop for all, and a stranger who loads them."""

import json
import string
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from processes import ask_stranger
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import train_accelerate
from jepa4rec.baselines import SEQUENCE_MODELS
from jepa4rec.baselines.hybrid_gru import age_group, first_of_each
from jepa4rec.baselines.item_sequences import Items, full_softmax, pad_sequences, sampled_softmax
from jepa4rec.baselines.llamarec import PROMPT
from jepa4rec.baselines.lrurec import LruRec, LruRecConfig
from jepa4rec.baselines.recguru import ReversedGradient
from jepa4rec.baselines.s3rec import draw_segments, number_attributes
from jepa4rec.baselines.vqrec import means, nearest, product_codes, sinkhorn
from jepa4rec.datasets_builders.contract import make_dataset, save_dataset
from jepa4rec.evaluation.scorers import SequenceScorer
from jepa4rec.training.batches import Example
from jepa4rec.training.phases.sequence import SequenceCollator
from jepa4rec.training.recipe import read_recipe
from jepa4rec.training.start import train_wordpiece
from tests.conftest import TINY_ITEMS, WITHOUT_PACKAGE

pytestmark = pytest.mark.slow("trains every baseline through the loop")

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "max_length": 5, "dropout": 0.0}
NAMES = sorted(SEQUENCE_MODELS)
OWN_SHAPE = {"unisrec": {"num_experts": 3}, "vqrec": {"code_length": 4, "code_size": 8}}

STRANGER = (
    WITHOUT_PACKAGE
    + """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

for checkpoint in sys.argv[1:]:
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
    assert config.num_items == 12
    with torch.no_grad():
        users = model.user_vectors(torch.tensor([[3, 1, 4], [5, 9, -1]]))
        save_file({"users": users, "items": model.item_vectors().contiguous()}, checkpoint + ".safetensors")
"""
)


def make_model(name, **overrides):
    """A tiny model of twelve items in evaluation mode, with random text vectors where it reads any."""
    init = tiny_language_model() if name == "llamarec" else "scratch"
    torch.manual_seed(0)
    shape = {"num_items": 12, **SHAPE, **OWN_SHAPE.get(name, {}), **overrides}
    items = Items(TINY_ITEMS, lambda: torch.randn(12, 16), ["shop"] * 6 + ["market"] * 6, init)
    return SEQUENCE_MODELS[name].for_catalogue(shape, items).eval()


@cache
def tiny_language_model() -> str:
    """The folder of a random Llama of one layer with a vocabulary of its own."""
    folder = mkdtemp()
    texts = [*PROMPT.values(), *string.ascii_uppercase, *string.digits, "()"]
    tokenizer = train_wordpiece([*texts, *(item["title"] for item in TINY_ITEMS)], 200)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def masked(rows):
    """Sequences padded with -1, and where their items are."""
    ids = torch.tensor(rows)
    return ids, ids >= 0


def slow_transformer(body, vectors, causal=True):
    """What a TransformerBody in evaluation mode makes of one sequence (L, d), a place and a head at a time."""
    count, width = vectors.shape
    hidden = body.first_norm(vectors + body.positions.weight[:count])
    for block in body.blocks:
        size = width // block.heads
        q, k, v = block.query_key_value(block.attention_norm(hidden)).split(width, dim=1)
        mixed = torch.zeros_like(hidden)
        for place in range(count):
            seen = place + 1 if causal else count
            for first in range(0, width, size):
                own = slice(first, first + size)
                weights = (k[:seen, own] @ q[place, own] / size**0.5).softmax(0)
                mixed[place, own] = weights @ v[:seen, own]
        hidden = hidden + block.out(mixed)
        hidden = hidden + block.shrink(torch.nn.functional.gelu(block.grow(block.network_norm(hidden))))
    return body.last_norm(hidden)


def stir(model):
    """Weights far from their small beginnings, so that a slip shows."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """40 users who walk round the twelve items in order: the next item follows from the last one."""
    items = pa.table(
        {"item_id": [str(i) for i in range(12)], **{k: [i[k] for i in TINY_ITEMS] for k in TINY_ITEMS[0]}}
    )
    starts = np.random.default_rng(0).integers(0, 12, 40)
    walks = [[int(start + step) % 12 for step in range(8)] for start in starts]
    sequences = pa.table({"user_id": [str(u) for u in range(40)], "items": pa.array(walks, pa.list_(pa.int32()))})
    folder = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(make_dataset(items, sequences, {"name": "walks", "config": "tiny"}), folder)
    return folder


@pytest.fixture(scope="module")
def encoder(shop, tmp_path_factory) -> str:
    """A tiny random text encoder with its tokenizer, saved as a checkpoint of ours."""
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tree = {
        "run": {"output_dir": str(folder / "unused")},
        "data": {"dir": str(shop)},
        "tokenizer": {"max_items": 4, "max_tokens": 64, "vocab_size": 200},
        "model": {"config": shape},
        "phases": [{"kind": "finetune"}],
    }
    path = folder / "encoder.yaml"
    path.write_text(yaml.safe_dump(tree))
    recipe = read_recipe(path)
    data = train_accelerate.load_run_data(recipe.data)
    torch.manual_seed(0)
    train_accelerate.write_checkpoint(*train_accelerate.make_starting_checkpoint(recipe, data), folder / "encoder")
    return str(folder / "encoder")


@pytest.fixture
def train(shop, encoder, tmp_path):
    """train(name, **config) -> (record, folder) of a short run of the recipe of that name."""

    def run(name, *settings, **config):
        tree = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        tree["run"]["output_dir"] = str(tmp_path / name)
        tree["data"] = {"dir": str(shop)}
        start = {}
        if SEQUENCE_MODELS[name].reads_texts:
            tree["tokenizer"] = {"max_items": 4, "max_tokens": 64, "vocab_size": 200}
            start = {"init": tiny_language_model() if name == "llamarec" else encoder}
        shape = {**tree["model"]["config"], **SHAPE, **OWN_SHAPE.get(name, {}), **config}
        tree["model"] = {**tree["model"], **start, "config": shape}
        for phase in tree["phases"]:
            phase |= {"epochs": 1.0, "steps": 20, "batch_size": 20, "lr": 1e-2, "evaluate_every_steps": 40}
        for phase in tree["phases"][-1:]:
            phase["steps"] = 120
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        AcceleratorState._reset_state(reset_partial_state=True)
        return train_accelerate.run(read_recipe(path, list(settings))), tmp_path / name

    return run


# ---- what a model may see


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    model = make_model(name)
    with torch.no_grad():
        alone = model.user_vectors(torch.tensor([[3, 1]]))
        padded = model.user_vectors(torch.tensor([[3, 1, -1, -1], [5, 6, 7, 8]]))
    torch.testing.assert_close(alone[0], padded[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bert4rec", "recguru")])
def test_no_place_sees_the_items_after_it(name):
    model = make_model(name)
    with torch.no_grad():
        vectors = [model.examples(*masked([[3, 1, 4, last, 2]]))[0] for last in (5, 9)]
    torch.testing.assert_close(vectors[0][:3], vectors[1][:3])
    assert not torch.allclose(vectors[0][3], vectors[1][3])


def test_the_masked_item_is_hidden_and_both_sides_are_seen():
    model = make_model("bert4rec", last_rate=1.0)
    with torch.no_grad():
        one, target, _ = model.examples(*masked([[3, 1, 4]]))
        other, _, _ = model.examples(*masked([[3, 1, 7]]))
        history = model.user_vectors(torch.tensor([[3, 1]]))
    assert target.tolist() == [4]
    torch.testing.assert_close(one, other)  # a different target looks the same
    torch.testing.assert_close(one, history)  # and training asks what ranking asks


def test_masks_fall_at_their_rates_on_items_only():
    model = make_model("bert4rec", mask_rate=0.25, last_rate=0.5)
    torch.manual_seed(0)
    rows = torch.tensor([[1, 2, 3, 4, 5, -1]]).repeat(4000, 1)
    chosen = model.choose_masked(rows >= 0)
    assert chosen.any(1).all() and not chosen[:, 5].any()
    none = 0.75**5
    wanted = 0.5 * 0.25, 0.5 + 0.5 * (0.25 + none)
    assert chosen[:, 0].float().mean() == pytest.approx(wanted[0], abs=0.02)
    assert chosen[:, 4].float().mean() == pytest.approx(wanted[1], abs=0.02)


def test_esasrec_gates_what_attention_and_network_add():
    model = stir(make_model("esasrec", num_hidden_layers=2, num_attention_heads=1))
    ids = torch.tensor([[3, 1, 4, 1]])
    x = (model.item_embeddings(ids) + model.positions.weight[:4])[0]
    for block in model.blocks:
        seen = block.attention_norm(x)
        q, k, v = (seen @ block.query_key_value.weight.T + block.query_key_value.bias).split(16, dim=1)
        mixed = torch.stack([(q[i] @ k[: i + 1].T / 4).softmax(0) @ v[: i + 1] for i in range(4)])
        x = x + block.attention_gate(x).sigmoid() * block.out(mixed)
        seen = block.network_norm(x)
        switch, value = seen @ block.grow.weight[:32].T, seen @ block.grow.weight[32:].T
        x = x + block.network_gate(x).sigmoid() * (switch * switch.sigmoid() * value @ block.shrink.weight.T)
    torch.testing.assert_close(model.read(ids, model.item_vectors())[0], x)


def test_sasrec_reads_as_the_slow_transformer():
    model = stir(make_model("sasrec", num_hidden_layers=2))
    rows = torch.tensor([3, 1, 4, 1])
    torch.testing.assert_close(
        model.read(rows[None], model.item_vectors())[0], slow_transformer(model.body, model.item_embeddings(rows))
    )


def test_fdsa_joins_what_ids_and_texts_say():
    model = stir(make_model("fdsa"))
    rows = torch.tensor([3, 1, 4])
    by_ids = slow_transformer(model.item_body, model.item_embeddings(rows))[-1]
    by_texts = slow_transformer(model.text_body, model.adaptor(model.text_vectors[rows]))[-1]
    by_hand = model.join.weight[:, :16] @ by_ids + model.join.weight[:, 16:] @ by_texts + model.join.bias
    torch.testing.assert_close(model.user_vectors(rows[None])[0], by_hand)
    assert torch.equal(model.item_vectors(), model.item_embeddings.weight)


def test_zesrec_is_a_gru_over_mapped_texts_and_offsets_with_a_prior():
    model = stir(make_model("zesrec", offset_l2=0.5))
    items = torch.stack(
        [
            model.text_map.weight @ model.text_vectors[n] + model.text_map.bias + model.item_offsets.weight[n]
            for n in range(12)
        ]
    )
    state, gru = torch.zeros(32), model.gru
    for row in (3, 1):
        seen, known = (
            gru.weight_ih_l0 @ items[row] + gru.bias_ih_l0,
            gru.weight_hh_l0 @ state + gru.bias_hh_l0,
        )
        reset, update = ((seen[p] + known[p]).sigmoid() for p in (slice(0, 32), slice(32, 64)))
        new = (seen[64:] + reset * known[64:]).tanh()
        state = (1 - update) * new + update * state
    user = model.out.weight @ state + model.out.bias
    torch.testing.assert_close(model.user_vectors(torch.tensor([[3, 1]]))[0], user)
    parts = model.losses(*masked([[3, 1, 4]]))
    lengths = [model.item_offsets.weight[n].norm().item() ** 2 for n in range(12)]
    assert parts["offsets"].item() == pytest.approx(0.5 * sum(lengths) / 12, rel=1e-5)


def slow_hybrid_scores(model, history):
    """Scores (12,) of the hybrid after one history, an item, an age and a step of the recurrence at a time."""
    texts = torch.nn.functional.normalize(model.text_vectors, dim=1)
    if model.config.item_ids:
        items = torch.stack([texts[n] + (model.item_offsets[n] if model.seen[n] else 0) for n in range(12)])
    else:
        items = torch.stack([text + model.text_offsets.T @ text for text in texts])
    unit, gru, state = items / items.norm(dim=1, keepdim=True), model.gru, torch.zeros(32)
    for row in history:
        seen = gru.weight_ih_l0 @ unit[row] + gru.bias_ih_l0
        known = gru.weight_hh_l0 @ state + gru.bias_hh_l0
        reset, update = ((seen[p] + known[p]).sigmoid() for p in (slice(0, 32), slice(32, 64)))
        state = (1 - update) * (seen[64:] + reset * known[64:]).tanh() + update * state
    user = model.out.weight @ state + model.out.bias
    for age, row in enumerate(history[::-1][: model.config.newest_items]):
        user = user + model.log_age_weights[age].exp() * unit[row]
    scores = unit @ (user / user.norm())
    for row in set(history):
        scores[row] += model.again[history[::-1].index(row)]
    return scores


def test_the_hybrid_adds_its_newest_items_to_a_gru_and_knows_what_was_had_before():
    model = stir(make_model("hybrid_gru", newest_items=2))
    model.seen[[0, 5]] = False
    rows = [3, 1, 4, 1]
    wanted = slow_hybrid_scores(model, rows)
    assert not torch.allclose(wanted[[1, 3, 4]], slow_hybrid_scores(model, [3, 4, 1])[[1, 3, 4]])
    torch.testing.assert_close(SequenceScorer(model).score([np.array(rows)])[0], wanted.detach())
    order = model.order_candidates([np.array(rows)], torch.tensor([[4, 2, 1, 3]]))[0]
    assert order.tolist() == wanted[[4, 2, 1, 3]].argsort(descending=True).tolist()
    losses = []
    for history, target in ((rows[:1], 1), (rows[:2], 4), (rows[:3], 1), ([7], 3)):
        logits = slow_hybrid_scores(model, history)[model.seen] / model.config.temperature
        losses.append(logits.logsumexp(0) - slow_hybrid_scores(model, history)[target] / model.config.temperature)
    loss = model.losses(*masked([rows, [7, 3, -1, -1]]))["softmax"]
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    assert model.item_offsets.grad[[0, 5]].abs().max() == 0 < model.item_offsets.grad[3].abs().max()


def test_the_hybrid_without_ids_learns_a_map_of_all_texts():
    model = make_model("hybrid_gru", item_ids=False)
    torch.testing.assert_close(model.item_vectors(), torch.nn.functional.normalize(model.text_vectors, dim=1))
    stir(model)
    scores = SequenceScorer(model).score([np.array([3, 1, 4])])[0]
    torch.testing.assert_close(scores, slow_hybrid_scores(model, [3, 1, 4]).detach())
    assert not [name for name, weight in model.named_parameters() if 12 in weight.shape]  # nothing is an item's own
    other = make_model("hybrid_gru", item_ids=False)
    other.take_weights(model)
    torch.testing.assert_close(other.text_offsets, model.text_offsets)
    for one, another in ((model, make_model("hybrid_gru")), (make_model("hybrid_gru"), model)):
        own = str(one.config.item_ids).lower()
        with pytest.raises(ValueError, match=f"it was trained with item_ids: {own}.* set model.config.item_ids={own}"):
            another.take_weights(one)


def test_ages_beyond_the_eighth_share_an_amount_for_every_doubling():
    assert [age_group(age) for age in range(34)] == [*range(8), *[8] * 8, *[9] * 16, 10, 10]
    known = torch.tensor([[4, 1, 4, -1], [2, 2, 2, 3]])
    assert first_of_each(known).tolist() == [[4, 1, -1, -1], [2, -1, -1, 3]]


def test_lrurec_recurs_a_step_at_a_time():
    model = stir(make_model("lrurec", num_hidden_layers=2))
    rows = [3, 1, 4, 1, 5, 9, 2]
    hidden = model.norm(model.item_embeddings.weight[rows])
    for block in model.blocks:
        unit, state, out = block.recurrence, torch.zeros(32, dtype=torch.cfloat), []
        factor = torch.polar((-unit.log_decay.exp()).exp(), unit.log_angle.exp())
        weights = torch.complex(unit.grow.weight[:32], unit.grow.weight[32:])
        bias = torch.complex(unit.grow.bias[:32], unit.grow.bias[32:])
        back = torch.complex(unit.shrink.weight[:, :32], -unit.shrink.weight[:, 32:])
        for vector in hidden:
            state = factor * state + unit.log_gain.exp() * (weights @ vector.cfloat() + bias)
            out.append((back @ state).real + unit.shrink.bias)
        hidden = block.first_norm(hidden + torch.stack(out))
        hidden = block.last_norm(hidden + block.shrink(torch.nn.functional.gelu(block.grow(hidden))))
    torch.testing.assert_close(model.read(torch.tensor([rows]), model.item_vectors())[0], hidden, rtol=1e-4, atol=1e-4)


def test_lrurec_begins_with_long_memories():
    torch.manual_seed(0)
    sizes = LruRec(LruRecConfig(num_items=3, hidden_size=64)).blocks[0].recurrence.factor().abs()
    assert 0.8 <= sizes.min() and sizes.max() <= 0.99 and sizes.std() > 0.03


def test_llamarec_asks_for_a_letter():
    model, tokenizer = make_model("llamarec", num_candidates=3), AutoTokenizer.from_pretrained(tiny_language_model())
    titles = [item["title"] for item in TINY_ITEMS]
    pieces = [PROMPT["opening"], "(1) ", titles[3], PROMPT["line"], "(2) ", titles[1], PROMPT["middle"]]
    pieces += ["(A) ", titles[5], PROMPT["line"], "(B) ", titles[0], PROMPT["line"], "(C) ", titles[7]]
    ids = [i for piece in [*pieces, PROMPT["closing"]] for i in tokenizer.encode(piece, add_special_tokens=False)]
    assert model.write_prompt([3, 1, -1], [5, 0, 7]) == ids
    language = LlamaForCausalLM.from_pretrained(tiny_language_model()).eval()
    with torch.no_grad():
        logits = language(torch.tensor([ids])).logits[0, -1]
        asked = model.letter_logits(torch.tensor([[3, 1, -1], [2, 4, 6]]), torch.tensor([[5, 0, 7], [1, 2, 3]]))
    torch.testing.assert_close(asked[0], logits[tokenizer.convert_tokens_to_ids(["a", "b", "c"])])


def test_llamarec_leaves_out_the_oldest_where_a_prompt_is_too_long():
    model = make_model("llamarec", num_candidates=2)
    whole = model.write_prompt([3, 1, 4], [5, 0])
    model.config.max_prompt_tokens = len(whole) - 1
    assert model.write_prompt([3, 1, 4], [5, 0]) == model.write_prompt([1, 4], [5, 0])
    model.config.max_shown = 1
    assert model.write_prompt([3, 1, 4], [5, 0]) == model.write_prompt([4], [5, 0])


def test_llamarec_puts_the_best_candidates_in_the_language_models_order():
    model, histories = make_model("llamarec", num_candidates=4), [np.array([3, 1, 4]), np.array([5])]
    before = SequenceScorer(model).score(histories)
    model.start_phase("rank")
    after = SequenceScorer(model).score(histories)
    for row, history in enumerate(histories):
        best = before[row].argsort(descending=True)[:4]
        logits = model.letter_logits(torch.from_numpy(history)[None], best[None])[0]
        assert after[row].argsort(descending=True)[:4].tolist() == best[logits.argsort(descending=True)].tolist()
        rest = [item for item in range(12) if item not in best.tolist()]
        assert torch.equal(after[row][rest], before[row][rest])
        assert torch.equal(after[row].sort().values, before[row].sort().values)


def test_llamarec_draws_candidates_that_the_user_has_not():
    model = make_model("llamarec", num_candidates=5)
    torch.manual_seed(0)
    ids = torch.tensor([[3, 1, 4, 7], [5, 9, -1, -1]]).repeat(200, 1)
    candidates, places = model.draw_candidates(ids, torch.tensor([7, 9]).repeat(200))
    assert (candidates.gather(1, places[:, None])[:, 0] == torch.tensor([7, 9]).repeat(200)).all()
    assert all(len(set(row)) == 5 for row in candidates.tolist())
    assert not any({3, 1, 4} & set(row) for row in candidates[::2].tolist())
    assert set(places.tolist()) == set(range(5)) and set(candidates.flatten().tolist()) >= {0, 2, 6, 8}


def test_llamarecs_language_model_learns_to_answer(monkeypatch):
    model = make_model("llamarec", num_candidates=3)
    model.start_phase("rank")
    learning = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {"language_model"}
    drawn = torch.tensor([[4, 2, 0], [1, 8, 9]]), torch.tensor([0, 2])
    monkeypatch.setattr(model, "draw_candidates", lambda *_: drawn)
    optimizer = torch.optim.Adam(model.language_model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model.losses(*masked([[3, 1, 4], [5, 9, -1]]))["letters"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_unisrec_gives_items_of_equal_text_equal_vectors_unless_ids_tell_them_apart():
    texts = torch.randn(12, 16)
    texts[7] = texts[2]
    for item_ids in (False, True):
        model = make_model("unisrec", item_ids=item_ids)
        model.set_text_vectors(texts)
        scores = SequenceScorer(model).score([np.array([1, 4])])[0]
        assert (scores[7] == scores[2]).item() is not item_ids


def test_unisrec_experts_are_whitenings_mixed_by_the_gate():
    model = make_model("unisrec")
    adaptor, x = model.adaptor, model.text_vectors
    torch.nn.init.normal_(adaptor.centres)
    maps = adaptor.whiten.weight.unflatten(0, (3, 16))
    by_hand = sum(adaptor.weights(x)[:, [e]] * ((x - adaptor.centres[e]) @ maps[e].T) for e in range(3))
    torch.testing.assert_close(model.item_vectors(), by_hand)


def test_unisrec_refuses_vectors_of_another_shape_and_broken_ones():
    model = make_model("unisrec")
    with pytest.raises(ValueError, match=r"text vectors are \(11, 16\), expected \(12, 16\)"):
        model.set_text_vectors(torch.zeros(11, 16))
    with pytest.raises(ValueError, match="NaN"):
        model.set_text_vectors(torch.full((12, 16), float("nan")))


# ---- codes of texts


def test_product_codes_lose_less_than_without_the_rotation_and_are_the_same_again():
    torch.manual_seed(0)
    hidden = torch.randn(300, 2)
    vectors = hidden @ torch.randn(2, 8) + 0.05 * torch.randn(300, 8)  # all lies in a plane askew to the axes
    codes = product_codes(vectors, 4, 8)
    assert codes.shape == (300, 4) and int(codes.min()) >= 0 and int(codes.max()) < 8
    assert torch.equal(codes, product_codes(vectors, 4, 8))

    def unexplained(groups):  # within all groups of equal first codes, and so on
        means = torch.stack(
            [
                torch.stack([vectors[groups == g].mean(0) for g in groups.unique()])[
                    groups.unique(return_inverse=True)[1]
                ]
            ]
        )
        return float((vectors - means[0]).square().sum())

    joint = (codes * torch.tensor([1, 8, 64, 512])).sum(1)
    assert unexplained(joint) < 0.05 * float((vectors - vectors.mean(0)).square().sum())


def test_one_round_of_product_codes_is_the_nearest_centroid_of_each_part():
    torch.manual_seed(0)
    parts, centroids = torch.randn(2, 9, 3), torch.randn(2, 4, 3)
    by_hand = [
        [min(range(4), key=lambda m: float((p - c[m]).norm())) for p in part]
        for part, c in zip(parts, centroids, strict=True)
    ]
    assert nearest(parts, centroids).tolist() == by_hand
    groups = torch.tensor([0, 2, 2, 0, 0, 0, 0, 0, 0])
    fitted = means(parts[0], groups, centroids[0])
    torch.testing.assert_close(fitted[2], (parts[0][1] + parts[0][2]) / 2)
    assert torch.equal(fitted[1], centroids[0][1])  # nobody's, so it stays


def test_vqrec_items_are_the_mean_of_their_codes_embeddings():
    model = stir(make_model("vqrec"))
    for item in (0, 7):
        rows = [8 * part + int(code) for part, code in enumerate(model.codes[item])]
        by_hand = sum(model.code_embeddings.weight[row] for row in rows) / 4
        torch.testing.assert_close(model.item_vectors()[item], by_hand)


def test_vqrec_pre_training_has_the_batch_and_a_made_up_item_for_negatives(monkeypatch):
    model = stir(make_model("vqrec", temperature=0.5))
    model.start_phase("pretrain")
    ids = torch.tensor([[3, 1, 4], [5, 9, -1], [2, 6, 4]])  # the first and the last have the same target
    fakes = torch.randint(8, (3, 4))
    monkeypatch.setattr(model, "fake_codes", lambda targets: fakes)
    users = model.user_vectors(torch.tensor([[3, 1], [5, -1], [2, 6]]))
    items, total = model.item_vectors(), 0.0

    def cosine(a, b):
        return (a @ b / a.norm() / b.norm()).item()

    for row, target in enumerate((4, 9, 4)):
        others = [items[t] for t in (4, 9, 4) if t != target] + [model.embed_codes(fakes[[row]])[0]]
        scores = [cosine(users[row], items[target]) / 0.5, *(cosine(users[row], other) / 0.5 for other in others)]
        total += np.log(np.sum(np.exp(scores))) - scores[0]
    assert model.losses(ids, ids >= 0)["contrastive"].item() == pytest.approx(total / 3, abs=1e-5)


def test_vqrec_made_up_items_keep_a_share_of_their_targets_codes():
    model = make_model("vqrec", fake_rate=0.75)
    torch.manual_seed(0)
    targets = torch.arange(12).repeat(300)
    kept = (model.fake_codes(targets) == model.codes[targets]).float().mean()
    assert kept == pytest.approx(0.25 + 0.75 / 8, abs=0.02)


def test_vqrec_learns_which_old_code_each_new_one_is():
    model = make_model("vqrec", align=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.code_embeddings.weight)
    before = model.code_embeddings.weight.detach().clone()
    wanted = torch.stack([torch.randperm(8) for _ in range(4)])
    goal = before.unflatten(0, (4, 8)).gather(1, wanted[:, :, None].expand(-1, -1, 16)).flatten(0, 1)
    model.start_phase("align")
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learning == ["alignment"]
    optimizer = torch.optim.Adam([model.alignment], lr=0.3)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        (model.code_table() - goal).square().mean().backward()
        optimizer.step()
    model.eval()
    assert torch.equal(model.code_table(), goal) and torch.equal(model.code_embeddings.weight, before)
    model.start_phase("next_item")
    assert torch.equal(model.code_embeddings.weight, goal) and torch.equal(model.code_table(), goal)
    assert model.body.blocks[0].out.weight.requires_grad


def test_sinkhorn_matrices_sum_to_one_both_ways():
    torch.manual_seed(0)
    sums = sinkhorn(torch.randn(2, 5, 5))
    torch.testing.assert_close(sums.sum(1), torch.ones(2, 5))
    torch.testing.assert_close(sums.sum(2), torch.ones(2, 5), atol=0.1, rtol=0)


# ---- pre-training


def test_unisrec_pre_training_finds_next_items_and_thinned_selves(monkeypatch):
    model = stir(make_model("unisrec", sequence_weight=0.25, temperature=0.5))
    model.start_phase("pretrain")
    thinner = torch.tensor([[1, -1], [5, -1]])
    monkeypatch.setattr(model, "thinned", lambda histories: thinner)
    parts = model.losses(*masked([[3, 1, 4], [5, 9, -1]]))
    users, items = model.user_vectors(torch.tensor([[3, 1], [5, -1]])), model.item_vectors()
    cosine = torch.nn.functional.cosine_similarity
    for name, weight, others in (
        ("sequence_item", 1, items[[4, 9]]),
        ("sequence_sequence", 0.25, model.user_vectors(thinner)),
    ):
        scores = [[cosine(u, o, dim=0).item() / 0.5 for o in others] for u in users]
        by_hand = sum(np.log(np.sum(np.exp(row))) - row[n] for n, row in enumerate(scores)) / 2
        assert parts[name].item() == pytest.approx(weight * by_hand, abs=1e-5)


def test_thinned_histories_keep_their_order_and_an_item_at_least():
    model = make_model("unisrec", item_drop=0.5)
    torch.manual_seed(0)
    kept = [
        row[row >= 0].tolist() for row in model.thinned(torch.tensor([[3, 1, 4, 9], [7, -1, -1, -1]]).repeat(500, 1))
    ]
    assert all(row and row == sorted(row, key=[3, 1, 4, 9, 7].index) for row in kept)
    assert sum(map(len, kept[::2])) / 500 == pytest.approx(2 + 1 / 16, abs=0.1) and kept[1] == [7]


def test_s3rec_counts_attributes_that_items_share():
    texts = [
        {"title": "Pot", "brand": "Acme", "category": "Kitchen, Tea"},
        {"title": "Tea", "brand": "Bolt", "category": "Tea|Green"},
        {"title": "Mug", "brand": "Acme", "category": "Kitchen > Tea"},
    ]
    rows, count = number_attributes(texts, 2)
    assert (
        count == 3 and [len(row) for row in rows] == [3, 1, 3] and rows[0] == rows[2] and set(rows[1]) < set(rows[0])
    )
    assert number_attributes([{"title": "red pot"}, {"title": "Red tea"}], 2) == ([[0], [0]], 1)


def test_s3rec_losses_are_those_of_the_paper():
    model = stir(make_model("s3rec"))
    ids = torch.tensor([[3, 1, 4, 5], [5, 9, -1, -1]])
    chosen = torch.tensor([[False, True, False, True], [False, True, False, False]])
    negatives = torch.tensor([7, 8, 2])
    parts = model.item_losses(ids, ids >= 0, chosen, negatives)
    sigmoid, drawn = lambda x: 1 / (1 + np.exp(-x.item())), iter(negatives)
    by_hand = dict.fromkeys(parts, 0.0)
    for row, mask in zip(ids, chosen, strict=True):
        length = int((row >= 0).sum())
        read = [12 if mask[place] else int(row[place]) for place in range(length)]
        hidden = slow_transformer(model.body, model.item_embeddings.weight[read], causal=False)
        for place in range(length):
            item, task = int(row[place]), "masked_attributes" if mask[place] else "attributes"
            asked = model.heads[task](hidden[place])
            for attribute, vector in enumerate(model.attribute_embeddings.weight):
                has = sigmoid(asked @ vector)
                by_hand[task] -= np.log(has if attribute in model.item_attributes[item].tolist() else 1 - has)
            if mask[place]:
                asked = model.heads["masked_items"](hidden[place])
                right, wrong = (sigmoid(asked @ model.item_embeddings.weight[n]) for n in (item, next(drawn)))
                by_hand["masked_items"] -= np.log(sigmoid(right - wrong))
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(by_hand, rel=1e-4)

    inside = torch.tensor([[False, True, True, False], [True, False, False, False]])
    foreign = torch.tensor([[0, 6, 7, 0], [2, 0, 0, 0]])
    told = 0.0
    for read in ([3, 12, 12, 5], [12, 1, 4, 12], [12, 6, 7, 12]), ([12, 9], [5, 12], [2, 12]):
        context, right, wrong = (
            slow_transformer(model.body, model.item_embeddings.weight[row], causal=False)[-1] for row in read
        )
        asked = model.heads["segments"](context)
        told -= np.log(sigmoid(np.subtract(sigmoid(asked @ right), sigmoid(asked @ wrong))))
    assert model.segment_loss(ids, inside, foreign).item() == pytest.approx(told, rel=1e-4)


def test_s3rec_draws_what_the_losses_ask_for():
    model = make_model("s3rec", mask_rate=0.2)
    torch.manual_seed(0)
    ids = torch.tensor([[3, 1, 4, 5, 2, -1], [5, 9, -1, -1, -1, -1]]).repeat(1000, 1)
    chosen = model.choose_masked(ids >= 0)
    assert chosen[::2, 4].all() and chosen[1::2, 1].all() and not chosen[ids < 0].any()
    assert chosen[:, 0].float().mean() == pytest.approx(0.2, abs=0.03)
    assert not (model.draw_negatives(ids)[:, :, None] == ids[:, None, :]).any(2)[::2].float().mean() > 0.05
    inside, foreign = draw_segments(ids, ids >= 0)
    sizes = inside.sum(1)
    assert set(sizes[::2].tolist()) == {1, 2} and set(sizes[1::2].tolist()) == {1}
    assert not inside[ids < 0].any() and inside[:, :2].any(0).all() and (foreign[inside] >= 0).all()
    where = [row.nonzero().flatten().tolist() for row in inside]
    assert all(places == list(range(places[0], places[0] + len(places))) for places in where)


def test_recguru_recommends_by_the_history_and_its_user():
    model = stir(make_model("recguru"))
    rows = torch.tensor([3, 1, 4])
    items = model.item_embeddings(rows)
    user = slow_transformer(model.encoder, items, causal=False)[-1]
    beside = model.recommender_user.weight @ user + model.recommender_user.bias
    by_hand = slow_transformer(model.recommender, items + beside)[-1]
    torch.testing.assert_close(model.user_vectors(rows[None])[0], by_hand)
    vectors, targets, _ = model.examples(*masked([[3, 1, 4, 7], [5, 9, -1, -1]]))
    torch.testing.assert_close(vectors[0], by_hand)
    assert targets.tolist() == [7, 9]


def test_recguru_says_sequences_again_and_hides_their_domain():
    model = stir(make_model("recguru", discriminator_size=6, adversary_weight=0.25))
    model.start_phase("pretrain")
    ids = torch.tensor([[3, 1, 4], [9, 11, -1]])
    parts = model.losses(ids, ids >= 0)
    weight, said, hidden = model.item_embeddings.weight, 0.0, []
    for rows in ([3, 1, 4], [9, 11]):
        user = slow_transformer(model.encoder, weight[rows], causal=False)[-1]
        before = torch.stack([model.start, *weight[rows[:-1]]]) + model.decoder_user(user)
        states = slow_transformer(model.decoder, before)
        said -= sum((states[place] @ weight.T).log_softmax(0)[row].item() for place, row in enumerate(rows))
        hidden.append(user)
    assert parts["reconstruction"].item() == pytest.approx(said / 5, rel=1e-4)
    users = torch.stack(hidden).detach().requires_grad_()
    named = torch.nn.functional.cross_entropy(model.discriminator(users), torch.tensor([0, 1]))
    assert parts["domain"].item() == pytest.approx(named.item(), rel=1e-4)
    plain = torch.autograd.grad(named, users, retain_graph=True)[0]
    asked = ReversedGradient.apply(users, 0.25)
    turned = torch.autograd.grad(
        torch.nn.functional.cross_entropy(model.discriminator(asked), torch.tensor([0, 1])), users
    )
    torch.testing.assert_close(turned[0], -0.25 * plain)
    parts["domain"].backward()  # the discriminator itself learns to name
    sharper = torch.autograd.grad(named, model.discriminator[-1].weight)[0]
    torch.testing.assert_close(model.discriminator[-1].weight.grad, sharper, rtol=1e-3, atol=1e-5)


def test_recguru_has_no_adversary_in_one_domain():
    items = Items(TINY_ITEMS, lambda: None)
    model = SEQUENCE_MODELS["recguru"].for_catalogue({"num_items": 12, **SHAPE}, items)
    model.start_phase("pretrain")
    assert set(model.losses(*masked([[3, 1, 4]]))) == {"reconstruction"}


def test_a_pretrained_baseline_goes_on_with_other_items(train, tmp_path):
    _, folder = train("vqrec", "phases.0.objective=pretrain", "phases.0.steps=5")
    there = load_file(folder / "checkpoint" / "model.safetensors")
    pretrained = f"model.pretrained={tmp_path / 'there'}"
    (folder / "checkpoint").rename(tmp_path / "there")
    train("vqrec", pretrained, "phases=[]", "run.overwrite=true", align=True)
    here = load_file(folder / "checkpoint" / "model.safetensors")
    assert all(torch.equal(here[name], there[name]) for name in there if name != "codes")
    assert here.keys() - there.keys() == {"alignment"}
    short = "kind: sequence, steps: 2, batch_size: 20"
    phases = f"phases=[{{{short}, objective: align}}, {{{short}}}]"
    train("vqrec", pretrained, phases, "run.overwrite=true", align=True, fixed_body=True)
    last = load_file(folder / "checkpoint" / "model.safetensors")
    assert torch.equal(last["body.positions.weight"], there["body.positions.weight"])
    assert not torch.equal(last["code_embeddings.weight"], there["code_embeddings.weight"])


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("unisrec", {}, "holds vqrec, but the baseline is unisrec"),
        ("vqrec", {"hidden_size": 8}, r"code_embeddings.weight is \(32, 8\) here and \(32, 16\)"),
    ],
)
def test_a_pretrained_baseline_of_another_kind_or_shape_is_refused(train, tmp_path, name, config, message):
    make_model("vqrec").save_pretrained(tmp_path / "there")
    with pytest.raises(ValueError, match=message):
        train(name, f"model.pretrained={tmp_path / 'there'}", "phases=[]", **config)


@pytest.mark.parametrize("there", ["nothing", "bert4rec"])
def test_a_start_that_cannot_be_taken_is_told_before_items_are_encoded(train, tmp_path, monkeypatch, there):
    if there != "nothing":
        make_model(there).save_pretrained(tmp_path / there)
    monkeypatch.setattr("jepa4rec.training.start.encode_texts", lambda *_: pytest.fail("the items were encoded"))
    with pytest.raises(ValueError, match=rf"^model.pretrained: .*{there}"):
        train("vqrec", f"model.pretrained={tmp_path / there}", "phases=[]")


# ---- loss and batches


@pytest.mark.parametrize("negatives", [None, 5])
@pytest.mark.parametrize("temperature", [None, 0.1])
def test_softmax_in_blocks_equals_softmax_at_once(temperature, negatives, monkeypatch):
    torch.manual_seed(0)
    users, items, targets = torch.randn(7, 4), torch.randn(9, 4), torch.arange(7)
    drawn = () if negatives is None else (torch.randint(9, (7, negatives)),)
    results = []
    for logits in (2**26, 40):
        monkeypatch.setattr("jepa4rec.baselines.item_sequences.MOST_LOGITS", logits)
        u, v = users.clone().requires_grad_(), items.clone().requires_grad_()
        loss = (sampled_softmax if drawn else full_softmax)(u, targets, v, temperature, *drawn)
        loss.backward()
        results.append((loss.detach(), u.grad, v.grad))
    for once, blocks in zip(*results, strict=True):
        torch.testing.assert_close(once, blocks)


@pytest.mark.parametrize("num_items", [6, 13])  # fewer, and more, than numbers in the negatives' vectors
def test_the_sampled_softmax_tells_a_target_from_its_own_negatives_alone(num_items):
    torch.manual_seed(0)
    users, items = torch.randn(2, 4), torch.randn(num_items, 4)
    targets, negatives = torch.tensor([1, 4]), torch.tensor([[0, 1, 3], [5, 5, 2]])  # a target among its negatives
    by_hand = 0
    for user, target, drawn in zip(users, targets, ([0, 3], [5, 5, 2]), strict=True):
        scores = [float(user @ items[target]), *(float(user @ items[row]) for row in drawn)]
        by_hand -= scores[0] - np.log(np.sum(np.exp(scores)))
    assert sampled_softmax(users, targets, items, None, negatives).item() == pytest.approx(by_hand / 2, abs=1e-5)


OBJECTIVES = [(name, objective) for name in NAMES for objective in SEQUENCE_MODELS[name].objectives]
# Prompts are written as text, so candidates have to be known; `one_hot` checks its range everywhere but on CUDA.
OBJECTIVES = [own for own in OBJECTIVES if own not in (("llamarec", "rank"), ("vqrec", "align"))]


@pytest.mark.parametrize(("name", "objective"), OBJECTIVES)
def test_no_step_asks_for_a_number_of_the_device(name, objective):
    """The meta device has no numbers to tell: what a GPU would have to be waited for fails there."""
    model = make_model(name).to("meta").train()
    model.start_phase(objective)
    ids, known = masked([[3, 1, 4, 5], [5, 9, -1, -1]])
    model(ids.to("meta"), known).loss.backward()


def test_a_row_is_history_and_target():
    examples = [Example(np.array([4, 5]), 6, 0, 0), Example(np.array([7]), 8, 1, 0)]
    batch = SequenceCollator()(examples)
    assert batch["item_ids"].tolist() == [[4, 5, 6], [7, 8, -1]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert pad_sequences([np.array([1, 2, 3])], 2).tolist() == [[2, 3]]


# ---- the one loop


@pytest.mark.parametrize("name", [name for name in NAMES if name != "llamarec"])
def test_every_recipe_learns_and_is_recorded(train, name):
    record, folder = train(name)
    assert record["metrics"]["recall@10"] > 0.9 and record["validation_metrics"]["ndcg@10"] > 0.8
    system = record["system"].lower().replace("-", "")
    assert system == name.removesuffix("_gru") and (folder / "ranks.parquet").is_file()
    assert (folder / "checkpoint" / f"{name}.py").is_file()


def test_llamarec_trains_its_two_stages_and_keeps_both(train):
    record, folder = train("llamarec", "phases.1.steps=4", "phases.1.evaluate_every_steps=4", num_candidates=2)
    assert record["metrics"]["recall@10"] > 0.9 and record["system"] == "LlamaRec"
    model = SEQUENCE_MODELS["llamarec"].from_pretrained(folder / "checkpoint")
    assert model.config.reranks and json.loads((folder / "metrics.json").read_text())["recipe"]["phases"][1]
    assert tiny_language_model() not in (folder / "checkpoint" / "config.json").read_text()
    with pytest.raises(ValueError, match="name one in model.init"):
        train("llamarec", "model.init=scratch", "run.overwrite=true")


def test_a_stranger_loads_every_model(tmp_path):
    checkpoints = {name: tmp_path / name for name in NAMES}
    for name, folder in checkpoints.items():
        make_model(name).save_pretrained(folder)
    away = tmp_path / "away"
    away.mkdir()
    ask_stranger("-c", STRANGER, *checkpoints.values(), home=away)
    for name, folder in checkpoints.items():
        theirs, model = load_file(f"{folder}.safetensors"), make_model(name)
        with torch.no_grad():
            # Products of matrices that lie elsewhere in memory may differ in the last bit.
            users = model.user_vectors(torch.tensor([[3, 1, 4], [5, 9, -1]]))
            torch.testing.assert_close(theirs["users"], users, rtol=1e-6, atol=1e-6)
            assert torch.equal(theirs["items"], model.item_vectors())


def test_an_interrupted_run_ends_as_an_uninterrupted_one(train, monkeypatch):
    settings = ("run.save_every=10", "phases.0.steps=30", "phases.0.evaluate_every_steps=15")
    whole, folder = train("bert4rec", *settings)
    weights = load_file(folder / "checkpoint" / "model.safetensors")
    real_step, calls = train_accelerate.optimiser_step, []

    def stop_at_25(*arguments):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return real_step(*arguments)

    monkeypatch.setattr(train_accelerate, "optimiser_step", stop_at_25)
    with pytest.raises(KeyboardInterrupt):
        train("bert4rec", *settings, "run.overwrite=true")
    monkeypatch.undo()
    resumed, _ = train("bert4rec", *settings, "run.resume=true")
    assert resumed["metrics"] == whole["metrics"]
    again = load_file(folder / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.baseline=null"], "phases of kind sequence train a model.baseline: name one"),
        (["model.baseline=sasrek"], "baseline sasrek is unknown; did you mean sasrec?"),
        (["phases.0.objective=pretrain"], "phases.0.objective is pretrain, but sasrec has next_item"),
        (["phases.0.freeze_layers=1"], "freeze_layers and freeze_word_embeddings are for text encoders"),
        (["run.activation_checkpointing=true"], "activation_checkpointing is for text encoders"),
        (["model.config.droput=0.1"], "SasRecConfig has no such field; did you mean dropout?"),
        (["model.config.num_attention_heads=3"], r"hidden_size \(16\) must be a multiple of num_attention_heads"),
        (["model.config.dropout=high"], "dropout"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(train, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        train("sasrec", *settings)
    assert "\n" not in str(caught.value).strip()


def test_the_records_name_what_was_trained(train):
    record, folder = train("gru4rec", "phases.0.steps=2")
    assert json.loads((folder / "metrics.json").read_text())["recipe"]["model"]["baseline"] == "gru4rec"
    assert record["baselines"].keys() >= {"popularity"} and "zero_shot" not in record
