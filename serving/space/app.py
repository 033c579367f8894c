"""A page to try a checkpoint on: pick a history, see what is recommended and why, wish, reveal, bring a catalogue.

    python serving/space/app.py --checkpoint runs/quickstart --catalogue data/toy_shop

Without arguments the environment says what is shown, as on a Space: SEQREC_CHECKPOINT, SEQREC_REVISION and
SEQREC_CATALOGUE. Of the project this folder needs nothing but a checkpoint, which brings its own code.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from transformers import logging as transformers_logging

import drawing
from reading import read_csv
from recommender import NO_WISH, Explanation, Recommendation, Recommender, Reveal, Wish

MOST_ITEMS = 20  # of a history on this page
MOST_LETTERS = 500  # of a wish or a search
ACTIONS = ("why", "aim", "add", "remove", "earlier", "later")
MOST_SESSIONS = 1000  # kept, the oldest go: each holds its copy of the page, 0.1 MiB, also after its visitor has left
LEFT_FILES = (600, 3600)  # every ten minutes, what was uploaded an hour ago and never read
STYLE = Path(__file__).with_name("style.css")
CSV_HELP = """<p>A table of your items: a column <b>item_id</b> and one or more columns of text, the most important one
first. A column <b>popularity</b> (a number) is used while a history is empty. Nothing is trained: the model reads your
texts as they are. The file is deleted as soon as it is read; its items are forgotten with this session.</p>
<pre>item_id,title,brand
a1,Two-person tent,Northpath
a2,Camping stove,Lumo</pre>"""
NO_CATALOGUE = "There is no catalogue yet: upload one as CSV."
REVEAL_HELP = """<p>Choose the item that should come next and tell the model some of its words: how fast does it rise?
A pre-trained JEPA4Rec predicts the item from them and your history; with any other model they count as much as your
history.</p>"""


@dataclass(frozen=True)
class Visit:
    """All that one visitor has said; a click makes a new one."""

    shop: Recommender
    history: tuple[str, ...] = ()
    wish: Wish = NO_WISH
    top_k: int = 10
    exclude: bool = True
    opened: str | None = None  # the recommendation whose reasons are shown
    target: str | None = None  # the item whose words are revealed
    percent: float = 0.0
    examples_seen: int = 0
    _cache: dict = field(default_factory=dict, compare=False)

    @cached_property
    def found(self) -> list[Recommendation]:
        """Recommendations. Raises ValueError where there are none to give, in a sentence."""
        return self.shop.recommend(self.history, self.wish, self.top_k, self.exclude)

    @property
    def popular(self) -> bool:
        return not self.history and not self.wish.mixed

    def why(self, item_id: str) -> Explanation:
        key = ("why", item_id, self.history, self.wish, self.exclude)
        return self._once(key, lambda: self.shop.explain(self.history, item_id, self.wish, self.exclude))

    def reveal(self) -> Reveal:
        return self._once(("reveal", self.target, self.history), lambda: self.shop.reveal(self.history, self.target))

    def _once(self, key: tuple, make):
        """The last answer of each kind is kept, as a click changes one thing and draws all."""
        kind = key[0]
        if self._cache.get(kind, (None,))[0] != key:
            self._cache[kind] = key, make()
        return self._cache[kind][1]


# ---- clicks: a visit and what was said -> the next visit


def click(visit: Visit, action: str, item_id: str) -> Visit:
    """What a button of the lists does. Raises ValueError where it cannot, in a sentence."""
    if action not in ACTIONS or not isinstance(item_id, str):
        raise ValueError("This button is not one of this page: reload it.")
    visit.shop.catalogue.rows([item_id])  # one that is not there is an error here, and not when it is drawn
    if action == "why":
        return replace(visit, opened=None if visit.opened == item_id else item_id)
    if action == "aim":
        return replace(visit, target=item_id)
    return replace(visit, history=change_history(visit.history, action, item_id), opened=None)


def change_history(history: tuple[str, ...], action: str, item_id: str) -> tuple[str, ...]:
    """Add, remove, or move an item one place."""
    items = list(history)
    if action == "add":
        if item_id in items:
            raise ValueError("This item is in your history already.")
        if len(items) == MOST_ITEMS:
            raise ValueError(f"A history on this page has at most {MOST_ITEMS} items: remove one first.")
        return (*items, item_id)
    if item_id not in items:
        raise ValueError("This item is not in your history.")
    place = items.index(item_id)
    items.pop(place)
    if action != "remove":
        items.insert(max(0, place + {"earlier": -1, "later": 1}[action]), item_id)
    return tuple(items)


def show_example(visit: Visit) -> Visit:
    """The next example: a history, and the item that came after it as the target."""
    if not len(visit.shop.catalogue):
        raise ValueError(NO_CATALOGUE)
    history, target = visit.shop.example(visit.examples_seen)
    return replace(visit, history=tuple(history), target=target, opened=None, examples_seen=visit.examples_seen + 1)


def upload(visit: Visit, path: str) -> tuple[Visit, str]:
    """The visit with a catalogue of its own, and what was read; the file is deleted in any case.

    Raises ValueError for a file that cannot be.
    """
    if not isinstance(path, str):
        raise ValueError("No file came: upload it again.")
    name = Path(path).name
    try:
        content = Path(path).read_bytes()
        Path(path).unlink()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name[:100]} is gone: upload it again.") from error
    found = read_csv(content, name)
    shop = visit.shop.with_items(found.items, name, found.popularity)
    said = f"{name}: {len(found.items):,} items, read as {found.encoding}."
    if found.encoding == "Windows-1252":
        said += " If letters look wrong, save the file as UTF-8 and upload it again."
    return first_visit(shop), said


def told(visit: Visit, wish, weight, only, top_k, exclude) -> Visit:
    """The visit with what the page's fields say; whatever they hold. Raises ValueError for what is no number."""
    if not _is_number(weight) or not _is_number(top_k):
        raise ValueError("How many recommendations, and how much the wish counts, are numbers.")
    wished = Wish(_words(wish), min(max(weight, 0), 100) / 100, bool(only))
    return replace(visit, wish=wished, top_k=int(top_k), exclude=bool(exclude))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf


def _words(text) -> str:
    """What was typed, no more of it than anybody types."""
    return text[:MOST_LETTERS] if isinstance(text, str) else ""


def first_visit(shop: Recommender) -> Visit:
    """How a visitor begins."""
    return Visit(shop, top_k=min(10, max(1, len(shop.catalogue))))


# ---- panels: a visit -> HTML


def recommendation_panel(visit: Visit) -> str:
    try:
        found, why = visit.found, ""
        if visit.opened and visit.history and any(one.item_id == visit.opened for one in found):
            why = drawing.explanation(visit.why(visit.opened), visit.wish.text)
        elif visit.opened:
            why = f'<div class="why">{drawing.note("Your wish alone chose it: the history is empty.")}</div>'
    except ValueError as error:
        return problem(error)
    return drawing.recommendations(visit.shop, found, visit.history, visit.popular, visit.opened, why)


def reveal_panel(visit: Visit) -> str:
    if visit.target is None:
        return drawing.boxed(drawing.note("No target yet. Search for one above, or let an example choose it."))
    try:
        return drawing.reveal_panel(visit.reveal(), visit.percent)
    except ValueError as error:
        return problem(error)


def catalogue_panel(visit: Visit, said: str = "") -> str:
    if said:
        return drawing.boxed(drawing.note(said, "good"))
    size = len(visit.shop.catalogue)
    return drawing.boxed(drawing.note(f"In use: {visit.shop.name}, {size:,} items." if size else NO_CATALOGUE))


def search_panel(visit: Visit, words: str, action: str) -> str:
    if not words.strip():
        return ""
    if not len(visit.shop.catalogue):
        return drawing.boxed(drawing.note(NO_CATALOGUE))
    try:
        ids, literal = visit.shop.search(words)
    except ValueError:  # nothing in it that the model could read
        return drawing.boxed(drawing.note(f"Nothing found for “{words.strip()}”."))
    return drawing.results(visit.shop, ids, literal, words, action)


def problem(error: Exception) -> str:
    """An error's sentence, in the page."""
    return drawing.boxed(drawing.note(sentence(error), "problem"))


def sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:1].upper() + text[1:]


def panels(visit: Visit) -> tuple[Visit, str, str, str]:
    """What a click may change, in the order of the page's outputs."""
    return visit, drawing.history_list(visit.shop, visit.history), recommendation_panel(visit), reveal_panel(visit)


# ---- the page


class Page:
    """The Gradio page around one shop: components, and which click changes what."""

    def __init__(self, shop: Recommender):
        self.start = first_visit(shop)
        with gr.Blocks(title=drawing.TITLE, analytics_enabled=False, delete_cache=LEFT_FILES) as self.blocks:
            self.visit = gr.State(None, time_to_live=3600)
            self.header = gr.HTML(drawing.header(shop), elem_id="header")
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    self._draw_history()
                with gr.Column(scale=6, min_width=300, elem_id="answers"):
                    self._draw_answers()
            self._connect()

    def launch(self, **options):
        """Starts serving; nothing of the page is fetched from elsewhere."""
        return self.blocks.queue(default_concurrency_limit=2).launch(
            theme=theme(),
            css_paths=STYLE,
            footer_links=[],
            max_file_size="20mb",
            state_session_capacity=MOST_SESSIONS,
            **options,
        )

    def _draw_history(self) -> None:
        self.search = gr.Textbox(label="Search the catalogue", placeholder="for example: tent", elem_id="search")
        self.results = clickable("results")
        self.history = clickable("history", drawing.history_list(self.start.shop, ()))
        with gr.Row():
            self.example = gr.Button("Show me an example", min_width=130, variant="primary", elem_id="example")
            self.clear = gr.Button("Start again", min_width=130, elem_id="clear")
        with gr.Group():
            self.wish = gr.Textbox(
                label="A wish in words", placeholder="for example: coffee, or: for my dog", elem_id="wish"
            )
            self.weight = gr.Slider(
                0, 100, 50, step=5, label="How much the wish counts (%)", elem_id="weight", buttons=[]
            )
            self.only = gr.Checkbox(False, label="Only what is near the wish", elem_id="only")
        with gr.Accordion("Settings", open=False):
            self.top_k = gr.Number(self.start.top_k, label="How many recommendations", precision=0, elem_id="top_k")
            self.exclude = gr.Checkbox(True, label="Leave out what is in the history")

    def _draw_answers(self) -> None:
        with gr.Tabs():
            with gr.Tab("For you"):
                self.found = clickable("found", recommendation_panel(self.start))
            with gr.Tab("Reveal a target"):
                gr.HTML(drawing.boxed(REVEAL_HELP))
                self.aim = gr.Textbox(label="Search a target", placeholder="for example: sleeping bag", elem_id="aim")
                self.aims = clickable("aims")
                self.percent = gr.Slider(
                    0, 100, 0, step=5, label="Words of the target that are told (%)", elem_id="percent", buttons=[]
                )
                self.revealed = gr.HTML(reveal_panel(self.start), elem_id="revealed")
            with gr.Tab("Your catalogue"):
                gr.HTML(drawing.boxed(CSV_HELP))
                self.file = gr.File(
                    label="Your items as CSV", file_types=[".csv", ".tsv", ".txt"], elem_id="file", height=140
                )
                self.catalogue = gr.HTML(catalogue_panel(self.start), elem_id="catalogue")
                self.back = gr.Button("Back to the first catalogue")

    def _connect(self) -> None:
        shown = [self.visit, self.history, self.found, self.revealed]
        # One change of a visit at a time, so that none is lost. A textbox's `input` is blind to pasting and deleting,
        # so its `change` is used.
        change = {"api_visibility": "private", "concurrency_id": "visit", "concurrency_limit": 1}
        quiet = {**change, "show_progress": "hidden"}
        looking = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
        settings = [self.wish, self.weight, self.only, self.top_k, self.exclude]
        self.search.change(self._search, [self.visit, self.search], self.results, **looking)
        self.aim.change(self._search_target, [self.visit, self.aim], self.aims, **looking)
        for element in (self.results, self.history, self.found):
            element.click(self._click, self.visit, shown, **quiet)
        self.aims.click(self._aim, self.visit, [*shown, self.aims, self.aim], **quiet)
        self.example.click(self._example, self.visit, shown, **quiet)
        self.clear.click(self._clear, self.visit, [*shown, self.search, self.results, self.wish], **quiet)
        gr.on(
            [self.wish.change, *(setting.input for setting in settings[1:])],
            self._settings, [self.visit, *settings], shown, **quiet, trigger_mode="always_last",
        )  # fmt: skip
        self.percent.input(
            self._reveal, [self.visit, self.percent], [self.visit, self.revealed], **quiet, trigger_mode="always_last"
        )
        whole = [*shown, self.header, self.catalogue, self.top_k, self.percent, self.only]
        whole += [self.search, self.results, self.wish, self.aim, self.aims, self.file]
        # Encoding a catalogue takes a while: it waits in a line of its own, and nobody's click behind it.
        encoding = {**change, "concurrency_id": "upload"}
        self.file.upload(self._upload, [self.visit, self.file], whole, **encoding)
        self.back.click(self._back, None, whole, **quiet)

    # ---- events; the visit is None until something was said, and again when it was forgotten

    def _search(self, visit: Visit | None, words: str) -> str:
        return search_panel(visit or self.start, _words(words), "add")

    def _search_target(self, visit: Visit | None, words: str) -> str:
        return search_panel(visit or self.start, _words(words), "aim")

    def _click(self, visit: Visit | None, event: gr.EventData):
        return self._next(visit, lambda own: click(own, *_said(event)))

    def _aim(self, visit: Visit | None, event: gr.EventData):
        return *self._click(visit, event), "", ""

    def _example(self, visit: Visit | None):
        return self._next(visit, show_example)

    def _clear(self, visit: Visit | None):
        return *self._next(visit, lambda own: replace(own, history=(), opened=None, wish=NO_WISH)), "", "", ""

    def _settings(
        self, visit: Visit | None, wish: str, weight: float, only: bool, top_k: float | None, exclude: bool
    ):  # fmt: skip
        return self._next(visit, lambda own: told(own, wish, weight, only, top_k, exclude))

    def _reveal(self, visit: Visit | None, percent: float):
        visit = replace(visit or self.start, percent=min(max(percent, 0), 100) if _is_number(percent) else 0.0)
        return visit, reveal_panel(visit)

    def _upload(self, visit: Visit | None, path: str):
        try:
            return self._whole(*upload(visit or self.start, path))
        except ValueError as error:
            kept = [gr.skip()] * len(self._whole(self.start))
            kept[5], kept[-1] = problem(error), None  # the catalogue's panel says it, the file's place is free again
            return kept

    def _back(self):
        return self._whole(self.start)

    def _whole(self, visit: Visit, said: str = "") -> list:
        """Everything on the page as it is when a catalogue is new."""
        begun = [drawing.header(visit.shop), catalogue_panel(visit, said), visit.top_k, 0, False]
        return [*panels(visit), *begun, *[""] * 5, None]

    def _next(self, visit: Visit | None, change):
        visit = visit or self.start
        try:
            visit = change(visit)
        except ValueError as error:
            gr.Info(sentence(error))
        return panels(visit)


def _said(event: gr.EventData) -> tuple:
    """Which button was clicked, and of which item; whatever came, for anybody can send an event."""
    data = event._data if isinstance(event._data, Mapping) else {}
    return data.get("action"), data.get("id")


def clickable(name: str, value: str = "") -> gr.HTML:
    """A list whose buttons report their clicks."""
    return gr.HTML(value, js_on_load=drawing.LISTENER, elem_id=name)


def theme() -> gr.themes.Base:
    """Calm colours, fonts of the visitor's own machine, quiet text that is still dark enough to read."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    made = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="stone", **fonts)
    return made.set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        color_accent="*primary_700",
        slider_color="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        block_radius="12px",
        container_radius="12px",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A page to try a checkpoint on.")
    said = os.environ.get
    parser.add_argument(
        "--checkpoint", default=said("SEQREC_CHECKPOINT"),
        help="folder of a run or a checkpoint, or its id on the Hub (or SEQREC_CHECKPOINT)",
    )  # fmt: skip
    parser.add_argument(
        "--revision", default=said("SEQREC_REVISION"),
        help="commit or tag of a checkpoint on the Hub, whose code is run: better pinned (or SEQREC_REVISION)",
    )  # fmt: skip
    parser.add_argument(
        "--catalogue", default=said("SEQREC_CATALOGUE"),
        help="a built dataset, a saved catalogue, a CSV file, or a dataset on the Hub (or SEQREC_CATALOGUE)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, help="7860 or the next that is free")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        if not args.checkpoint:
            raise ValueError("no checkpoint: give --checkpoint or set SEQREC_CHECKPOINT.")
        Page(Recommender.open(args.checkpoint, args.catalogue, args.revision)).launch(server_port=args.port)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
