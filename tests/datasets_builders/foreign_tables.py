"""Tables as others keep them: a shop made up once and written as an Excel book and as a European export, and MovieLens
in RecBole's atomic files. Nothing of it knows how this package names its columns."""

import csv
import datetime
import gzip
import random
from pathlib import Path

KINDS = {
    "Tea": ["Green tea", "Black tea", "Herbal tea", "Teapot", "Tea cosy", "Tea strainer", "Sugar bowl", "Biscuits"],
    "Garden": ["Spade", "Watering can", "Tomato seeds", "Flower pot", "Gloves", "Compost", "Bird table", "Hose"],
    "Desk": ["Notebook", "Fountain pen", "Ink, blue", "Desk lamp", "Paper clips", "Ruler", "Stapler", "Envelopes"],
    "Sport": ["Running shoes", "Socks", "Head torch", "Water bottle", "Yoga mat", "Skipping rope", "Towel", "Cap"],
}
PRODUCTS = [(100 + n, title, kind) for n, (kind, title) in enumerate((k, t) for k, ts in KINDS.items() for t in ts)]


def orders(customers: int = 80, each: int = 9) -> list[tuple[int, int, datetime.datetime]]:
    """Customer, product and time: everybody walks through one kind of thing and now and then through another."""
    dice, rows = random.Random(0), []
    for customer in range(customers):
        place, time = (
            dice.randrange(len(PRODUCTS)),
            datetime.datetime(2024, 1, 1, 9) + datetime.timedelta(days=customer),
        )
        for _ in range(each):
            rows.append((5000 + customer, PRODUCTS[place][0], time))
            kind = place // 8 if dice.random() < 0.9 else dice.randrange(len(KINDS))
            place = 8 * kind + (place + dice.choice([1, 1, 1, 2])) % 8
            time += datetime.timedelta(days=dice.randrange(1, 20), minutes=dice.randrange(600))
    return sorted(rows, key=lambda row: row[2])


def write_book(path: Path) -> Path:
    """One Excel book with a sheet of orders, one of products, and one that is only to be read."""
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Read me"
    book.active.append(["Export of our shop"])
    sheets = {"Orders": [["Order No", "Customer", "Product ID", "Ordered At", "Quantity"]]}
    sheets["Orders"] += [[n, user, item, time, 1 + n % 3] for n, (user, item, time) in enumerate(orders(), start=9001)]
    sheets["Products"] = [["Product ID", "Title", "Category", "Price"]]
    sheets["Products"] += [[item, title, kind, 2.5 + item % 7] for item, title, kind in PRODUCTS]
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def write_export(folder: Path) -> list[Path]:
    """Two files as a shop in Europe exports them: semicolons, latin-1, the day first, commas in numbers."""
    paths = [folder / "bestellungen.csv", folder / "artikel.csv"]
    with paths[0].open("w", encoding="latin-1", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Bestellung", "Kundennummer", "Artikelnummer", "Datum", "Betrag"])
        for number, (user, item, time) in enumerate(orders(), start=1):
            rows.writerow([number, user, item, f"{time:%d.%m.%Y %H:%M}", f"{2.5 + item % 7:.2f}".replace(".", ",")])
    with paths[1].open("w", encoding="latin-1", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Artikelnummer", "Bezeichnung", "Kategorie", "Preis"])
        for item, title, kind in PRODUCTS:
            rows.writerow([item, f"{title} (für zu Hause)", kind, f"{2.5 + item % 7:.2f}".replace(".", ",")])
    return paths


def write_small_movielens(movielens: Path, folder: Path, users: int = 40) -> Path:
    """The first users of MovieLens in files of the same form."""
    folder.mkdir()
    for name in ("movies.csv.gz", "ratings.csv.gz"):
        with gzip.open(movielens / name, "rt", encoding="utf-8", newline="") as source:
            header, *lines = source
        if name.startswith("ratings"):
            lines = [line for line in lines if int(line.split(",")[0]) <= users]
        with gzip.open(folder / name, "wt", encoding="utf-8", newline="") as target:
            target.writelines([header, *lines])
    return folder


def write_atomic(movielens: Path, folder: Path) -> Path:
    """MovieLens' two files as RecBole's ``ml.inter`` and ``ml.item``."""
    folder.mkdir()
    heads = {
        "ratings": ("ml.inter", ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]),
        "movies": ("ml.item", ["item_id:token", "movie_title:token_seq", "class:token_seq"]),
    }
    for name, (target, head) in heads.items():
        with gzip.open(movielens / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as source:
            rows = [[cell.replace("|", " ") for cell in row] for row in list(csv.reader(source))[1:]]
        lines = ["\t".join(row) for row in [head, *rows]]
        (folder / target).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
