"""What the page shows, as HTML: pure functions from the recommender's answers to text.

Buttons carry `data-action` and `data-id`; one listener (`LISTENER`) tells the server which was clicked. All that
comes from a catalogue or a visitor is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from attribution_seqrec import Word
from recommender import Explanation, Recommendation, Recommender, Reveal

TITLE = "What next?"
ABOUT = "Pick things you like. A language model of shopping histories says what may come next, and why."
# Every click on a button with an action, of whatever the element shows by then.
LISTENER = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (button) trigger('click', {action: button.dataset.action, id: button.dataset.id || ''});
});"""
TOP_WORDS = 5
LITTLE = 0.02  # of the strongest item's share: a word below it is not worth a colour
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 190, 40, 26, 12  # of the chart, in its own units


def boxed(content: str) -> str:
    """The page's own styles hold inside of it alone."""
    return f'<div class="shop">{content}</div>'


def note(text: str, kind: str = "") -> str:
    """A sentence in the page: kind "problem", "good" or nothing."""
    role = ' role="alert"' if kind == "problem" else ""
    return f'<p class="note {kind}"{role}>{escape(text)}</p>'


def title_and_rest(item: Mapping) -> tuple[str, str]:
    """The first attribute, and the others in a line, less what was said already."""
    texts = [" ".join(str(text).split()) for name, text in item.items() if str(text or "").strip()]
    title = texts[0] if texts else "(no text)"
    said, rest = title.casefold(), []
    for text in texts[1:]:
        if text.casefold() not in said:
            rest.append(text)
            said += f" {text.casefold()}"
    return title, _cut(" · ".join(rest), 110)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _what(item: Mapping) -> str:
    title, rest = title_and_rest(item)
    second = f'<div class="rest">{escape(rest)}</div>' if rest else ""
    return f'<div class="what"><div class="title">{escape(_cut(title, 140))}</div>{second}</div>'


def _button(action: str, item_id: str, sign: str, label: str, enabled: bool = True, more: str = "") -> str:
    off = "" if enabled else " disabled"
    return (
        f'<button type="button" data-action="{action}" data-id="{escape(item_id)}" aria-label="{escape(label)}"'
        f' title="{escape(label)}"{more}{off}>{sign}</button>'
    )


# ---- lists


def header(shop: Recommender) -> str:
    """The page's name, what it is, and which catalogue it shows."""
    size = len(shop.catalogue)
    chip = f"{shop.name} · {size:,} items" if size else "No catalogue yet"
    return boxed(f'<h1>{TITLE}</h1><p class="quiet">{ABOUT}</p><span class="chip">{escape(chip)}</span>')


def results(shop: Recommender, ids: Sequence[str], literal: bool, words: str, action: str) -> str:
    """What a search found, each item with a button: "add" to the history, or "aim" at it as the target."""
    sign, verb = ("+ Add", "Add") if action == "add" else ("Choose", "Choose")
    rows = []
    for item_id in ids:
        item = shop.item(item_id)
        button = _button(action, item_id, sign, f"{verb} {title_and_rest(item)[0]}")
        rows.append(f'<li><div class="line">{_what(item)}<div class="buttons">{button}</div></div></li>')
    said = f"No item has the words “{escape(words.strip())}”; these are nearest in meaning:"
    heading = "" if literal else f'<p class="quiet">{said}</p>'
    return boxed(f'{heading}<ul class="items" aria-label="Search results">{"".join(rows)}</ul>')


def history_list(shop: Recommender, history: Sequence[str]) -> str:
    """The history, oldest first, each item with buttons to move it and to take it out."""
    if not history:
        return boxed("<h2>Your history</h2>" + note("Empty so far. Search for something you like and add it."))
    rows = []
    for place, item_id in enumerate(history):
        item = shop.item(item_id)
        title = title_and_rest(item)[0]
        buttons = _button("earlier", item_id, "↑", f"Move {title} earlier", place > 0)
        buttons += _button("later", item_id, "↓", f"Move {title} later", place + 1 < len(history))
        buttons += _button("remove", item_id, "✕", f"Remove {title}")
        rows.append(f'<li><div class="line">{_what(item)}<div class="buttons">{buttons}</div></div></li>')
    heading = '<h2>Your history <span class="quiet">oldest first</span></h2>'
    return boxed(f'{heading}<ol class="items" aria-label="History">{"".join(rows)}</ol>')


def recommendations(
    shop: Recommender, found: Sequence[Recommendation], history: Sequence[str], popular: bool, opened: str | None,
    why: str,
) -> str:  # fmt: skip
    """Recommendations, best first; the opened one with its explanation `why`."""
    rows = []
    for place, one in enumerate(found, start=1):
        item, is_open = shop.items[one.row], one.item_id == opened
        title = title_and_rest(item)[0]
        score = f"{one.score:,.0f}×" if popular else f"{one.score:.3f}"
        buttons = _button("add", one.item_id, "+", f"Add {title} to the history", one.item_id not in history)
        if not popular:
            expanded = f' aria-expanded="{"true" if is_open else "false"}"'
            buttons = _button("why", one.item_id, "Why?", f"Why {title}?", True, expanded) + buttons
        line = f'<span class="place">{place}</span>{_what(item)}<span class="score">{score}</span>'
        rows.append(
            f'<li><div class="line">{line}<div class="buttons">{buttons}</div></div>{why if is_open else ""}</li>'
        )
    said = note("Nothing to go by yet, so these are the most popular items.") if popular else ""
    return boxed(f'{said}<ol class="items" aria-label="Recommendations">{"".join(rows)}</ol>')


# ---- why


def explanation(why: Explanation, wish: str) -> str:
    """What the score would lose without the wish, each item and each word, and where the item would then stand."""
    most = max([np.abs(why.items).max(), abs(why.wish or 0.0), 1e-9])
    causes = [] if why.wish is None else [_cause(f"Your wish “{wish.strip()}”", why.wish, most)]
    for place in np.argsort(-why.items, kind="stable"):
        causes.append(_cause(title_and_rest(why.history[place])[0], why.items[place], most))
    checks = " ".join(f"Without {escape(check.what)}: number {check.rank:,.0f}." for check in why.checks)
    return (
        f'<div class="why" aria-label="Why"><h3>What each thing adds to the score of {why.score:.3f}</h3>'
        f"{''.join(causes)}{_words(why)}<h3>Checked by taking it away</h3>"
        f"<p>Number {why.rank:,.0f} of all items here. {checks}</p>"
        '<p class="quiet">Every number is the score less the score of the same history without that one thing; with a '
        "minus, it spoke against this item.</p></div>"
    )


def _cause(label: str, drop: float, most: float) -> str:
    share, kind = 100 * abs(drop) / most, "" if drop >= 0 else ' class="against"'
    track = f'<span class="track"><i{kind} style="width:{share:.0f}%"></i></span>'
    named = f'<span title="{escape(label)}">{escape(label)}</span>'
    return f'<div class="cause">{named}{track}<span>{_signed(drop)}</span></div>'


def _signed(drop: float) -> str:
    text = f"{abs(drop):.3f}"
    return f"−{text}" if drop < 0 and text.strip("0.") else text


def _words(why: Explanation) -> str:
    """The words that mattered by name, then every text with its words coloured; a sentence where none matters."""
    most = np.abs(why.words).max(initial=0)
    if most < LITTLE * np.abs(why.items).max():
        return f"<h3>Words</h3><p>None matters by itself (at most {most:.3f}): the items as a whole do.</p>"
    named = {}
    for place in sorted(range(len(why.places)), key=lambda place: -why.words[place]):
        word = _word(why, place)
        if why.words[place] > 0:
            named.setdefault(word.casefold(), f"<b>{escape(word)}</b> {why.words[place]:.3f}")
    said = ", ".join(list(named.values())[:TOP_WORDS])
    texts = "".join(_marked(why, place, most) for place in range(len(why.history)))
    return f"<h3>Words that mattered</h3><p>{said}</p>{texts}"


def _word(why: Explanation, place: int) -> str:
    word: Word = why.places[place]
    return why.history[word.item][word.attribute][word.start : word.end]


def _marked(why: Explanation, item: int, most: float) -> str:
    """An item's attributes in one line, its words coloured by what they are worth."""
    parts = []
    for name, text in why.history[item].items():
        told, end = "", 0
        for place, word in enumerate(why.places):
            if word.item == item and word.attribute == name:
                much = 75 * abs(why.words[place]) / most
                kind = "for" if why.words[place] >= 0 else "against"
                told += escape(text[end : word.start])
                told += (
                    f'<mark class="{kind}" style="--much:{much:.0f}%" title="{_signed(why.words[place])}">'
                    f"{escape(text[word.start : word.end])}</mark>"
                )
                end = word.end
        parts.append(told + escape(text[end:]))
    return f'<p class="words">{" · ".join(parts)}</p>'


# ---- revealed words


def reveal_panel(reveal: Reveal, percent: float) -> str:
    """The target with the words told so far, its rank, and the rank's way down as a plot."""
    step = reveal.step(percent)
    told = set(reveal.order[: reveal.counts[step]])
    rank = f"{reveal.ranks[step]:,.0f} of {reveal.catalogue:,}"
    count = f"{reveal.counts[step]} of {len(reveal.order)} words told"
    first = "" if reveal.counts[0] == 0 else " The history is empty, so the first word is told from the start."
    return boxed(
        f'<p class="words">{_partly(reveal, told)}</p><p aria-live="polite"><span class="rank">Rank {rank}</span> '
        f'<span class="quiet">{count}.{first}</span></p>{_chart(reveal, step)}'
    )


def _partly(reveal: Reveal, told: set[Word]) -> str:
    parts = []
    for name, text in reveal.item.items():
        shown, end = "", 0
        for word in sorted((word for word in reveal.order if word.attribute == name), key=lambda word: word.start):
            own = escape(text[word.start : word.end])
            hidden = f'<span class="untold" aria-label="hidden word">{"▪" * min(8, word.end - word.start)}</span>'
            shown += escape(text[end : word.start]) + (f"<b>{own}</b>" if word in told else hidden)
            end = word.end
        parts.append(shown + escape(text[end:]))
    return " · ".join(parts)


def _chart(reveal: Reveal, step: int) -> str:
    """Rank over words told, rank 1 on top, as SVG; the step in question has a dot."""
    highest = max(reveal.catalogue, 2)
    across, down = WIDTH - LEFT - 22, HEIGHT - TOP - BOTTOM

    def place(at: int) -> tuple[float, float]:
        told = reveal.counts[at] / max(1, len(reveal.order))
        return LEFT + across * told, TOP + down * math.log(reveal.ranks[at]) / math.log(highest)

    points = [place(at) for at in range(len(reveal.counts))]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dot = points[step]
    ranks = [1, *(10**power for power in range(1, 9) if 10**power < highest / 2), highest]
    y_of = {rank: TOP + down * math.log(rank) / math.log(highest) for rank in ranks}
    grid = "".join(
        f'<line x1="{LEFT}" x2="{LEFT + across}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{rank:,}</text>'
        for rank, y in y_of.items()
    )
    ticks = "".join(
        f'<text x="{LEFT + across * percent / 100:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{percent} %</text>'
        for percent in (0, 25, 50, 75, 100)
    )
    said = f"Rank {reveal.ranks[0]:,.0f} with {reveal.counts[0]} words told, {reveal.ranks[-1]:,.0f} with all of them."
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}" font-size="10" fill="currentColor">'
        f'{grid}{ticks}<polyline points="{line}" fill="none" stroke="var(--color-accent)" stroke-width="2"/>'
        f'<circle cx="{dot[0]:.1f}" cy="{dot[1]:.1f}" r="5" fill="var(--color-accent)"/></svg>'
        '<p class="quiet">Rank of the target (1 is best, logarithmic) over the share of its words that are told.</p>'
    )
