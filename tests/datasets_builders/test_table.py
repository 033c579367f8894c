"""Anybody's tables: what columns mean, what values are, and what is refused, by small files of each kind."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_tables import write_atomic, write_book, write_export

from jepa4rec.datasets_builders import build, load_dataset_dir, save_dataset
from jepa4rec.datasets_builders.meaning import columns_for
from jepa4rec.datasets_builders.reading import TableFile, book_sheets
from jepa4rec.datasets_builders.times import parse_dates, read_time_column

PRODUCTS = "item_id,title\na,Tea\nb,Pot\n"


def write(folder: Path, name: str, content) -> Path:
    """A file of the kind that its name says: text as it is, a dict of columns as Parquet or as sheets of a book."""
    path = folder / name
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(content), path)
    elif path.suffix == ".xlsx":
        write_sheets(path, content)
    else:
        path.write_bytes(content)
    return path


def write_sheets(path: Path, sheets: dict[str, list[list]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)


@pytest.fixture
def table(tmp_path):
    """``table(sales, products, **options)``: the dataset of two files' contents, CSV unless names say otherwise."""

    def make(sales, products=PRODUCTS, names=("sales.csv", "products.csv"), **options):
        contents = [content for content in (sales, products) if content is not None]
        files = [write(tmp_path, name, content) for name, content in zip(names, contents, strict=False)]
        return build("table", data_files=files, **options)

    return make


def histories(dataset) -> dict[str, list[str]]:
    """user -> the ids of what came after what."""
    ids = dataset.items["item_id"].to_pylist()
    rows = dataset.sequences.select(["user_id", "items"]).to_pylist()
    return {row["user_id"]: [ids[item] for item in row["items"]] for row in rows}


def texts(dataset) -> dict[str, dict[str, str]]:
    return dict(zip(dataset.items["item_id"].to_pylist(), dataset.item_texts(), strict=True))


def report(dataset) -> str:
    return "\n".join(dataset.info["report"])


# Columns by meaning


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    ("header", "products_header"),
    [
        ("user_id,item_id,timestamp", "item_id,title"),
        ("userId,movieId,timestamp", "movieId,title"),
        ("user,item,time", "item,title"),
        ("Customer ID,Product ID,Created At", "Product ID,Name"),
        ("customer_id,sku,ordered_at", "sku,name"),
        ("reviewerID,asin,unixReviewTime", "asin,title"),
        ("CustomerID,StockCode,InvoiceDate", "StockCode,Description"),
        ("Kundennummer,Artikelnummer,Datum", "Artikelnummer,Bezeichnung"),
        ("profile,beer_id,date".replace("profile", "username"), "beer_id,name"),
        ("customer,product_id,date", "id,title"),
        ("user_id:token,item_id:token,timestamp:float", "item_id:token,title:token_seq"),
    ],
)
def test_columns_are_found_by_what_their_names_mean(table, header, products_header):
    dataset = table(f"{header}\nu,b,1709280001\nu,a,1709280000\n", f"{products_header}\na,Tea\nb,Pot\n")
    assert histories(dataset) == {"u": ["a", "b"]}
    assert [list(text.values()) for text in texts(dataset).values()] == [["Tea"], ["Pot"]]
    user, item, time = (name.partition(":")[0] for name in header.split(","))
    assert f"user from '{user}'; item from '{item}'; timestamp from '{time}', in seconds" in report(dataset)


@pytest.mark.parametrize(
    "name",
    "Käufer usuario_id utilisateur_id utente klant пользователь 用户 user_id_hash customer_no session_id".split(),
)
def test_users_are_known_in_other_words(name):
    assert columns_for("user_id", ["order_id", name, "item_id"]) == [name]


@pytest.mark.parametrize("name", "prodotto produto Référence товар 商品 Artikel-Nr. movieId product_key".split())
def test_items_are_known_in_other_words(name):
    assert columns_for("item_id", ["order_id", name, "user_id"]) == [name]


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize("time", ["visit_time", "created_at_utc", "eventTimeMs", "t", "loan_date"])
@pytest.mark.parametrize(("later", "earlier"), [("1709280001", "1709280000"), ("2024-03-02", "2024-03-01")])
def test_a_time_is_found_by_its_values(table, time, later, earlier):
    sales = f"user_id,item_id,{time},amount,birth_date\nu,b,{later},7,1990-01-01\nu,a,{earlier},8,1990-01-01\n"
    dataset = table(sales)
    assert histories(dataset) == {"u": ["a", "b"]}
    assert f"timestamp from '{time}'" in report(dataset) and "times run from 2024-03-01 to 2024" in report(dataset)


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    ("header", "later", "earlier"),
    [
        ("date,time", "2024-03-01,23:10", "2024-03-01,09:05"),
        ("Datum,Uhrzeit", "13.12.2024,23:10:01", "13.12.2024,23:10:00"),
        ("order_date,order_time", "12/13/2024 0:00,11:10 PM", "12/13/2024 0:00,12:05 AM"),
        ("day,hour", "20240301,23:10", "20240301,09:05"),
    ],
)
def test_date_and_time_of_day_in_two_columns_are_one_time(table, header, later, earlier):
    dataset = table(f"user_id,item_id,{header}\nu,b,{later}\nu,a,{earlier}\n")
    assert histories(dataset) == {"u": ["a", "b"]}
    date, clock = header.split(",")
    assert f"timestamp from '{date}' and '{clock}', as dates with time of day" in report(dataset)


def test_a_time_of_day_is_known_by_name_and_values(table):
    dataset = table(
        "user_id,item_id,date,length,delivery_time\nu,b,2024-03-01,03:45,12:00\nu,a,2024-03-01,02:10,9:00\n"
    )
    assert "timestamp from 'date', as days" in report(dataset)
    with pytest.raises(ValueError, match="'date' holds days and 'time' times: say timestamp=COLUMN"):
        table("user_id,item_id,date,time\nu,b,2024-03-01,1709280001\nu,a,2024-03-01,1709280000\n")
    with pytest.raises(ValueError, match=r"column 'date': '2024-03-01 25:00' is not a date and time \(row 1001\)"):
        rows = "u,a,2024-03-01,10:00\n" * 1000
        table(f"user_id,item_id,date,time\n{rows}u,a,2024-03-01,25:00\n")


def test_of_two_unknown_times_one_is_asked_for(table):
    sales = "user_id,item_id,left,came\nu,b,2024-03-03,2024-03-01\nu,a,2024-03-01,2024-03-01\n"
    with pytest.raises(ValueError, match="'left' and 'came' hold times: say timestamp=COLUMN"):
        table(sales)
    assert histories(table(sales, timestamp="left")) == {"u": ["a", "b"]}
    assert "timestamps" not in table(sales, timestamp="none").sequences.column_names


def test_numbers_are_times_only_where_the_name_says_so(table):
    assert "no timestamp" in report(table("user_id,item_id,phone\nu,b,2125551234\nu,a,2125551233\n"))


def test_the_one_name_that_both_files_have_is_the_items(table):
    dataset = table("patient,drug_code,dose\nu,b,1\nu,a,2\n", "drug_code,drug_name\na,Tea\nb,Pot\n")
    assert histories(dataset) == {"u": ["b", "a"]}


def test_a_name_that_differs_within_an_item_is_not_the_items(table):
    sales = "Name,Email,Lineitem name,Lineitem sku\n#1,x@a.de,Tea,a\n#2,y@a.de,Tea,a\n#3,x@a.de,Pot,b\n"
    dataset = table(sales, None)
    assert dataset.attributes == ["Lineitem name"]
    assert "not used: 'Name'" in report(dataset)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_hexadecimal_ids_are_no_numbers_that_lost_digits(table, kind):
    pairs = [("3e11", "1e10"), ("3e11", "9e86"), ("4d00", "1e10")]
    if kind == "csv":
        sales = "user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in pairs)
    else:
        sales = "".join(json.dumps({"user_id": user, "item_id": item}) + "\n" for user, item in pairs)
    dataset = table(sales, "item_id,title\n1e10,Tea\n9e86,Pot\n", names=(f"sales.{kind}", "products.csv"))
    assert histories(dataset) == {"3e11": ["1e10", "9e86"], "4d00": ["1e10"]}


def test_an_id_that_lost_its_zeros_is_pointed_at(table):
    with pytest.raises(ValueError, match=r"item '007' has no text.*but '7' is: if they are one, write them alike"):
        table("user_id,item_id\nu,007\n", "item_id,title\n7,Tea\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rating": False}, "rating is False: it is a word, in quotation marks where it looks like more"),
        ({"user_id": 5}, "user_id is 5: it is a word"),
        ({"all_items": "maybe"}, "all_items is 'maybe': it is true or false"),
        ({"drop_duplicates": 5}, "drop_duplicates is 5: it is true or false"),
        ({"min_user_interactions": 0}, "min_user_interactions is a whole number of at least 1"),
        ({"min_user_interactions": True}, "min_user_interactions is True: it is a whole number"),
        ({"interactions_columns": "user_id"}, r"interactions_columns is 'user_id': it is a list such as \[a, b\]"),
        ({"rating_range": 5}, "rating_range is 5: it is a list"),
        ({"rating_range": [10, 0]}, r"rating_range is \[10, 0\]: it is \[LOWEST, HIGHEST\]"),
        ({"timestamp_unit": "h"}, "timestamp_unit is 'h'; it may be auto, s, ms"),
        ({"date_order": "x"}, "date_order is 'x'; it may be day_first, month_first"),
        ({"threads": 0}, "threads is 0: take at least one"),
    ],
)
def test_options_that_make_no_sense_are_refused(table, options, message):
    with pytest.raises(ValueError, match=message):
        table("user_id,item_id\nu,a\n", **options)


def test_two_files_of_interactions_are_no_catalogue(tmp_path):
    may, june = (write(tmp_path, f"{name}.csv", SALES) for name in ("may", "june"))
    with pytest.raises(ValueError, match="which are the interactions.*may.csv: interactions.*june.csv: interactions"):
        build("table", data_files=[may, june])
    with pytest.raises(ValueError, match="a file is given twice"):
        build("table", data_files=[may, may])
    items = write(tmp_path, "items.csv", "item_id,title,username\na,Tea,x\nb,Pot,y\n")
    assert histories(build("table", data_files=[items, may], user_id="user_id")) == {"u": ["b", "a"]}


def test_an_id_that_both_files_have_is_the_items(table):
    dataset = table(
        "customer,product_id,sku\nu,9,b\nu,9,a\n", "sku,title,picture\na,Tea,http://x/a.png\nb,Pot,http://x/b.png\n"
    )
    assert histories(dataset) == {"u": ["b", "a"]}
    assert "not used: 'product_id'" in report(dataset) and "'picture' (web addresses)" in report(dataset)


def test_a_whole_time_needs_no_clock_though_it_says_days(table):
    sales = 'user_id,item_id,reviewTime,unixReviewTime\nu,b,"06 18, 2018",1529280000\nu,a,"06 17, 2018",1529193600\n'
    dataset = table(sales)  # as raw Amazon has them
    assert histories(dataset) == {"u": ["a", "b"]}
    assert "timestamp from 'unixReviewTime', in seconds; not used: 'reviewTime'" in report(dataset)


def test_a_time_that_is_not_used_is_said(table):
    sales = "user_id,item_id,timestamp,date\nu,b,1709280001,2024-03-01\nu,a,1709280000,2024-03-01\n"
    assert "not used: 'date'" in report(table(sales))
    dataset = table(sales, timestamp="date")
    assert histories(dataset) == {"u": ["b", "a"]}
    assert "timestamp from 'date', as days; order inside a day is the file's; not used: 'timestamp'" in report(dataset)
    dataset = table(sales, timestamp="none")
    assert "timestamps" not in dataset.sequences.column_names and "no timestamp" in report(dataset)


def test_all_missing_columns_are_named_at_once_with_their_options(table):
    with pytest.raises(ValueError) as error:
        table("who,what\nu,a\n", "code_of_it,title\na,Tea\n")
    for part in ("the user (say user_id=COLUMN)", "the item (say item_id=COLUMN)", "(say items_item_id=COLUMN)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="column 'x' is missing; the file has 'user_id', 'item_id'; missing too: 'y'"):
        table("user_id,item_id\nu,a\n", user_id="x", item_id="y")


def test_files_are_told_apart_and_a_folder_will_do(tmp_path):
    write(tmp_path, "movies.csv", "movieId,title,genres\n1,Heat,Crime\n2,Up,Comedy\n")
    write(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n7,2,4.0,964982703\n7,1,5.0,964982702\n")
    write(tmp_path, "links.csv", "movieId,imdbId\n1,22\n2,23\n")
    write(tmp_path, "README.txt", "Movies, and ratings of them.\n")
    files = [tmp_path / "movies.csv", tmp_path / "ratings.csv"]
    dataset = build("table", data_files=files)
    assert histories(dataset) == {"7": ["1", "2"]}
    assert texts(dataset)["1"] == {"title": "Heat", "genres": "Crime"}
    write(tmp_path, "tags.csv", "userId,movieId,tag,timestamp\n7,2,old,964982703\n")
    with pytest.raises(ValueError, match="which are the interactions and which the items.*tags.csv: interactions"):
        build("table", data_files=tmp_path)


def test_the_file_with_a_user_holds_the_interactions_in_whatever_order(tmp_path):
    beers = write(tmp_path, "beers.csv", "beer_id,name\n1,Stout\n2,Pils\n")
    drunk = write(tmp_path, "drunk.csv", "username,beer_id\nann,2\nann,1\n")
    assert histories(build("table", data_files=[beers, drunk])) == {"ann": ["2", "1"]}


def test_recboles_atomic_files_are_read_as_they_are(tmp_path):
    write(
        tmp_path,
        "ml.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n9\tb\t3\t881250949\n9\ta\t4\t881250948\n",
    )
    write(
        tmp_path,
        "ml.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "a\t1984\t1984\tDrama\nb\tUp\t2009\tComedy Animation\n",
    )
    write(tmp_path, "ml.user", "user_id:token\tage:token\n9\t24\n")
    dataset = build("table", data_files=tmp_path)
    assert histories(dataset) == {"9": ["a", "b"]}
    assert dataset.sequences["timestamps"].to_pylist() == [[881250948000, 881250949000]]
    assert texts(dataset)["a"] == {"movie_title": "1984", "class": "Drama"}
    assert "'release_year' (no text)" in report(dataset)


def test_one_file_is_enough_where_it_tells_of_the_items(table):
    sales = "InvoiceNo,StockCode,Description,InvoiceDate,CustomerID,Country\n"
    sales += "1,a,TEA,2010-12-01 08:26:00,17850.0,UK\n2,a,?,2010-12-01 08:27:00,17850.0,UK\n"
    sales += "3,a,TEA,2010-12-01 08:25:00,17.0,UK\n4,b,POT,2010-12-01 08:25:00,17850.0,UK\n"
    dataset = table(sales, None)
    assert histories(dataset) == {"17850": ["b", "a", "a"], "17": ["a"]}
    assert texts(dataset) == {"a": {"Description": "TEA"}, "b": {"Description": "POT"}}
    assert "ids of 'CustomerID' like 101.0 are read as 101" in report(dataset)
    assert "not used: 'InvoiceNo', 'Country'" in report(dataset)


def test_rows_without_a_user_are_refused_or_left_out_and_counted(table):
    sales = "user_id,item_id,timestamp\nu,a,2024-03-01\n,b,2024-03-01\nu,b,\nu,b,2024-03-02\n"
    with pytest.raises(ValueError, match="row 2 has no value in column 'user_id'.*incomplete_rows=drop"):
        table(sales)
    dataset = table(sales, incomplete_rows="drop")
    assert histories(dataset) == {"u": ["a", "b"]}
    assert "2 of 4 interactions lack a value and are left out, first row 2" in report(dataset)


def test_in_a_list_of_sales_lines_without_a_customer_are_left_out(table):
    sales = "customer,sku,title\nu,a,Tea\n,b,Pot\nu,b,Pot\n"
    assert "1 of 3 interactions lack a value and are left out, first row 2" in report(table(sales, None))
    with pytest.raises(ValueError, match="row 2 has no value in column 'customer'"):
        table(sales, None, incomplete_rows="error")
    with pytest.raises(ValueError, match="incomplete_rows is 'skip'; it may be error, drop"):
        table(sales, None, incomplete_rows="skip")


# Forms of files


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    ("sales", "products"),
    [
        ("user_id;item_id\nu;b\nu;a\n", PRODUCTS),
        ("user_id\titem_id\nu\tb\nu\ta\n", "item_id;title\na;Tea\nb;Pot\n"),
        ("user_id::item_id\nu::b\nu::a\n", "item_id|title\na|Tea\nb|Pot\n"),
        ("sep=;\nuser_id;item_id\nu;b\nu;a\n", PRODUCTS),
        ("\ufeffuser_id,item_id\r\nu,b\r\nu,a\r\n", "\nitem_id,title\na,Tea\nb,Pot"),
        ("user_id,item_id\nu,b\nu,a\n".encode("utf-16"), PRODUCTS.encode("utf-16")),
        (",user_id,item_id\n0,u,b\n1,u,a\n", "item_id, title\na,Tea\nb,Pot\n"),
    ],
)
def test_every_file_has_its_own_delimiter_and_encoding(table, sales, products):
    dataset = table(sales, products)
    assert histories(dataset) == {"u": ["b", "a"]}
    assert texts(dataset) == {"a": {"title": "Tea"}, "b": {"title": "Pot"}}


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize("delimiter", [r"\t", "\t", "::", "~~"])
def test_a_delimiter_may_be_said(table, delimiter):
    sign = delimiter.replace(r"\t", "\t")
    sales, products = (text.replace(",", sign) for text in ("user_id,item_id\nu,b\nu,a\n", PRODUCTS))
    assert histories(table(sales, products, delimiter=delimiter)) == {"u": ["b", "a"]}


def test_files_without_a_header_get_their_names_by_option(table):
    files = {"names": ("ratings.dat", "movies.dat")}
    sales, movies = (
        "1::20::5::978300760\n1::10::3::978300759\n",
        "10::Toy Story, The (1995)::Animation|Comedy\n20::Heat::Crime\n",
    )
    with pytest.raises(ValueError, match=r"no column tells the user.*interactions_columns=\[...\] or items_columns"):
        table(sales, movies, **files)
    columns = {
        "interactions_columns": ["user_id", "item_id", "rating", "timestamp"],
        "items_columns": ["item_id", "title", "genres"],
    }
    dataset = table(sales, movies, **files, **columns)
    assert histories(dataset) == {"1": ["10", "20"]}
    assert texts(dataset)["10"] == {"title": "Toy Story, The (1995)", "genres": "Animation|Comedy"}


SALES = "user_id,item_id\nu,b\nu,a\n"


def rows_of(path: Path, **options) -> list[dict[str, str]]:
    [file] = book_sheets(TableFile(path, **options))
    return [row for batch in file.read(file.names) for row in batch.to_pylist()]


def zipped(name: str, text: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"shop/{name}", text)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("s.csv.gz", gzip.compress(SALES.encode(), mtime=0), {}),
        ("s.csv.bz2", bz2.compress(SALES.encode()), {}),
        ("s.csv.xz", lzma.compress(SALES.encode()), {}),
        ("cr.csv", SALES.replace("\n", "\r"), {}),
        ("cr_lf.csv", "\ufeff" + SALES.replace("\n", "\r\n").replace("user_id", '"user_id"'), {}),
        ("above.csv", "# export of May\n\n" + SALES, {"above": 1}),
        ("above.csv", "Sales, all of May\n;\n" + SALES.replace(",", ";"), {"delimiter": ";", "above": 1}),
        ("title.csv", "Sales;\n" + SALES.replace(",", ";"), {"delimiter": ";", "above": 1}),
        ("m.inter", "user_id:token item_id:token\nu b\nu a\n", {"delimiter": " "}),
        ("m.inter", "user_id:token,item_id:token\nu,b\nu,a\n", {"delimiter": ","}),
    ],
)
def test_one_table_in_many_forms(tmp_path, name, content, form):
    path = write(tmp_path, name, content if isinstance(content, bytes) else content.encode())
    assert rows_of(path) == [{"user_id": "u", "item_id": "b"}, {"user_id": "u", "item_id": "a"}]
    assert {key: getattr(TableFile(path).form, key) for key in form} == form


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    ("products", "name", "expected", "form"),
    [
        ('item_id\ttitle\na\t12" Record\nb\t"Best" of\n', "p.tsv", ['12" Record', '"Best" of'], "are letters"),
        ('item_id:token\ttitle:token_seq\na\t"Tea\nb\t"Pot\n', "p.item", ['"Tea', '"Pot'], "are letters"),
        ('item_id\ttitle\na\t"Tea\nb\tPot"\n', "p.tsv", ['"Tea', 'Pot"'], "are letters"),
        ('item_id\ttitle\na\t"Tea ""A""\tB"\nb\t"Pot"\n', "p.tsv", ['Tea "A"\tB', "Pot"], "(tabs)"),
        ('item_id;title\na;"Tea \\"A\\"; B"\nb;"Pot"\n', "p.csv", ['Tea "A"; B', "Pot"], "backslashes"),
    ],
)
def test_quotation_marks_as_files_have_them(table, products, name, expected, form):
    dataset = table("user_id,item_id\nu,a\nu,b\n", products, names=("s.csv", name))
    assert [text["title"] for text in texts(dataset).values()] == expected
    assert form in report(dataset)


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    "content",
    [
        "user_id,item_id\nu,b,\nu,a,\n",
        '"user_id","item_id"\n"1","u","b"\n"2","u","a"\n',
        "user_id,item_id,\nu,b,\nu,a,\n",
    ],
)
def test_delimiters_at_the_end_and_numbers_of_rows_are_no_values(table, content):
    assert histories(table(content)) == {"u": ["b", "a"]}


def test_a_value_more_in_every_row_is_refused(table):
    with pytest.raises(ValueError, match="Expected 3 columns, got 4"):
        table("user_id,item_id,rating\nu,a,4,5\nv,b,3,5\n")


def test_archives_are_folders(tmp_path):
    archive = write(tmp_path, "shop.zip", zipped("sales.csv", SALES))
    assert histories(build("table", data_files=[archive, write(tmp_path, "p.csv", PRODUCTS)])) == {"u": ["b", "a"]}
    with pytest.raises(ValueError, match="broken.zip cannot be unpacked"):
        build("table", data_files=write(tmp_path, "broken.zip", b"PK"))


def test_commas_in_the_texts_of_a_file_with_semicolons(tmp_path):
    path = write(tmp_path, "p.csv", "item_id;title\na;Tea, green, loose\nb;Pot, blue\n")
    assert rows_of(path)[0] == {"item_id": "a", "title": "Tea, green, loose"}


def test_other_encodings_are_read_as_windows_and_said_or_named(table):
    products = "item_id,title\na,Tee 5€ “süß”\nb,Pot\n"
    dataset = table(SALES, products.encode("cp1252"))
    assert texts(dataset)["a"] == {"title": "Tee 5€ “süß”"}
    assert "not UTF-8, read as cp1252; encoding= says otherwise" in report(dataset)
    dataset = table(SALES, "item_id,title\na,お茶\nb,急須\n".encode("shift_jis"), encoding="shift_jis")
    assert texts(dataset)["a"] == {"title": "お茶"} and "not UTF-8" not in report(dataset)
    with pytest.raises(ValueError, match="unknown encoding: klingon; encoding is one that Python knows"):
        table(SALES, encoding="klingon")
    damaged = "item_id,title\na,Täßchen\nb,Süß?\n".encode().replace(b"?", b"\xc3")
    with pytest.raises(ValueError, match="is UTF-8 but for 1 damaged letter, the first in line 3: mend the line"):
        table(SALES, damaged)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", gzip.compress(SALES.encode(), mtime=0), "begins like a file of the kind .gz: give it that ending"),
        ("s.csv", zipped("s.csv", SALES), "begins like a file of the kind .zip or .xlsx"),
        ("s.csv", b"\xd0\xcf\x11\xe0 x", "begins like a file of the kind .xls"),
        ("s.csv.gz", SALES.encode(), "s.csv.gz cannot be read"),
        ("s.csv.gz", gzip.compress(SALES.encode() * 99, mtime=0)[:-9], "s.csv.gz cannot be read"),
        ("s.csv.xz", lzma.compress(SALES.encode())[:-9], "s.csv.xz cannot be read"),
        ("s.xls", SALES.encode(), "s.xls: unknown kind of file; save it as .csv"),
        ("s.csv", SALES.encode("utf-32"), "is no text: it holds zero bytes"),
        ("s.csv", b"", "s.csv is empty"),
        ("s.json", b"[]", "s.json is empty"),
        ("s.jsonl", b"null\n", "a line is null where an object is needed"),
        ("s.jsonl", b"[1, 2]", "s.jsonl cannot be read"),
        ("s.csv", b"user_id,item_id\nu,a,b\n", "a value that holds the delimiter needs quotation marks"),
        ("s.csv", b"user_id^item_id\nu^a\n", "if another sign parts its columns, say delimiter=SIGN"),
        ("s.csv", b"user_id,item_id\nNone,a\n", "row 1 has no value in column 'user_id'"),
    ],
)
def test_what_is_no_table_says_what_it_is(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        build("table", data_files=[write(tmp_path, name, content), write(tmp_path, "p.csv", PRODUCTS)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sheet", "row"),
    [
        ([["Sales of May"], [], ["Who", "What"], ["u", 1]], {"Who": "u", "What": "1"}),
        ([[], ["Who", " What "], [None, None], ["u", 1.0], [None, None]], {"Who": "u", "What": "1"}),
        ([["Who", None, "What"], ["u", None, 1]], {"Who": "u", "What": "1"}),
        ([["Who", None, "What"], ["u", "x", 1]], {"Who": "u", "column 2": "x", "What": "1"}),
        ([["Who", "What"], ["u", 12345678901234567890.0]], {"Who": "u", "What": "1.234567890123457e+19"}),
    ],
)
def test_sheets_as_people_leave_them(tmp_path, sheet, row):
    assert rows_of(write(tmp_path, "s.xlsx", {"Empty": [], "Sheet": sheet})) == [row]


def test_rows_that_were_taken_for_columns_are_refused(tmp_path):
    path = write(tmp_path, "p.csv", ",".join(map(str, range(10_001))) + "\n")
    with pytest.raises(ValueError, match="p.csv has 10,001 columns, more than the 10,000 that are read"):
        _ = TableFile(path).names


def test_a_name_twice_is_refused_in_every_form(tmp_path):
    twice = pa.table([["a"], ["x"], ["y"]], names=["item_id", "title", "title"])
    pq.write_table(twice, tmp_path / "p.parquet")
    book = write(tmp_path, "p.xlsx", {"S": [["item_id", "title", "title"], ["a", "x", "y"]]})
    for path in (tmp_path / "p.parquet", book):
        with pytest.raises(ValueError, match="two columns are called 'title'"):
            _ = TableFile(path).names


ORDERS = [["Customer", "Product ID", "Date", "Note"], ["ann", 2, "2024-03-02", "x"], ["ann", 1, "2024-03-01", ""]]
GOODS = [["Product ID", "Title", "Price"], [1, "Tea", 2.5], [2, 1984, 3]]


def test_two_sheets_of_a_book_are_found_or_asked_for(tmp_path):
    book = write(tmp_path, "shop.xlsx", {"Read me": [["A shop"]], "Products": GOODS, "Orders": ORDERS, "Empty": []})
    dataset = build("table", data_files=book)
    assert histories(dataset) == {"ann": ["1", "2"]}
    assert texts(dataset) == {"1": {"Title": "Tea"}, "2": {"Title": "1984"}}
    assert "interactions: shop.xlsx, sheet Orders" in report(dataset) and "'Price' (no text)" in report(dataset)
    twice = write(tmp_path, "twice.xlsx", {"May": ORDERS, "June": ORDERS, "Products": GOODS})
    with pytest.raises(ValueError, match=r"sheets=\[INTERACTIONS, ITEMS\].*sheet 'May': interactions"):
        build("table", data_files=twice)
    assert histories(build("table", data_files=twice, sheets=["June", "Products"])) == {"ann": ["1", "2"]}


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("items.json", json.dumps([{"item_id": "a", "title": "Tea" * 999}]), "is a JSON array of more than 0 MB"),
        ("items.xlsx", {"items": [["item_id", "title"], ["a", "Tea" * 999]]}, "unpacks to 0 MB, more than 0"),
        ("items.json", "[" * 100_000, "seems damaged or of another format"),
    ],
)
def test_what_is_read_whole_has_a_limit(tmp_path, monkeypatch, name, content, sentence):
    monkeypatch.setattr("jepa4rec.datasets_builders.reading.LARGEST_WHOLE", 2000 if "more" in sentence else 2**20)
    files = [write(tmp_path, "sales.csv", "user_id,item_id\nu,a\nu,a\n"), write(tmp_path, name, content)]
    with pytest.raises(ValueError, match=f"{name}.* {sentence}") as error:
        build("table", None, files)
    assert "\n" not in str(error.value)


def coded(text: str, rows: int) -> pa.DictionaryArray:
    """One text that so many rows refer to."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), [text])


@pytest.mark.parametrize(
    "limits, columns, sentence",
    [
        (
            {"LARGEST_WHOLE": 2**20},
            {"title": ["x" * 2**21]},
            "column 'title' unpacks from [0-9,]+ bytes to 2 MB or more",
        ),
        ({"LONGEST_LINE": 999}, {"title": ["x" * 1000]}, "column 'title' has a text of more than 0 MB"),
        (
            {"MOST_VALUES": 999, "VALUES_A_BYTE": 10},
            {"title": coded("x", 90_000)},
            "column .item_id. says it has 90,000 values in [0-9,]+ bytes",
        ),
        (
            {"LARGEST_WHOLE": 2**20},
            {"tags": pa.ListArray.from_arrays([0, 50_000], coded("x" * 999, 50_000))},
            "column 'tags.list.element' unpacks from [0-9,]+ bytes to 47 MB or more",
        ),
    ],
)
def test_a_parquet_that_unpacks_hugely_is_refused(tmp_path, monkeypatch, limits, columns, sentence):
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"item_id": coded("a", rows), **columns}), tmp_path / "items.parquet", compression="zstd")
    for name, limit in limits.items():
        monkeypatch.setattr(f"jepa4rec.datasets_builders.reading.{name}", limit)
    with pytest.raises(ValueError, match=f"items.parquet: {sentence}") as error:
        build("table", None, [write(tmp_path, "sales.csv", "user_id,item_id\nu,a\nu,a\n"), tmp_path / "items.parquet"])
    assert "\n" not in str(error.value)


def test_a_long_text_that_every_row_repeats_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    table = pa.table({"item_id": [str(row) for row in range(5000)], "about": coded("a long text " * 99, 5000)})
    pq.write_table(table, tmp_path / "items.parquet")
    monkeypatch.setattr("jepa4rec.datasets_builders.reading.LARGEST_WHOLE", 2**20)
    batches = list(TableFile(tmp_path / "items.parquet").read(["item_id", "about"]))
    assert max(map(len, batches)) < 1000 and all(batch.nbytes < 2**20 for batch in batches)
    assert pa.Table.from_batches(batches).equals(table.cast(pa.schema([("item_id", "string"), ("about", "string")])))


@pytest.mark.parametrize(
    ("sales", "products", "told"),
    [
        ("u,1.0\nu,1.00\n", "1,Tea\n", "sales.csv: column 'item_id' has the ids '1.0' and '1.00', which"),
        ("7.000,1\n7.0,1\n", "1,Tea\n", "column 'user_id' has the ids '7.000' and '7.0', which both read as 7;"),
        ("u,1\nu,1\n", "1.00,Tea\n2,A\n1.0,Pot\n", "products.csv: column 'item_id' has the ids '1.00' and '1.0'"),
        ('u,"=""1.0"""\nu,1.00\n', "1,Tea\n", "the ids '1.0' and '1.00'.*with a letter in front if they are two"),
    ],
)
def test_ids_that_no_program_writes_of_one_number_are_not_made_one(table, sales, products, told):
    with pytest.raises(ValueError, match=told):
        table(f"user_id,item_id\n{sales}", f"item_id,title\n{products}")


def test_ids_that_became_floats_in_one_of_two_exports_are_one(table):
    """Each number has one such spelling, though not all have the same."""
    dataset = table("user_id,item_id\n5,1.0\n5.0,2.00\n5,1\n", "item_id,title\n1,Tea\n2.0,Pot\n")
    assert histories(dataset) == {"5": ["1", "2", "1"]}


@pytest.mark.parametrize(
    "name, opening, closing",
    [
        ("i.jsonl", "[" * 10**5, "]" * 10**5),
        ("i.jsonl", '{"a":[],"b":' * 200, "}" * 200),
        ("i.json", "[" * 500, "]" * 500),
    ],
)
def test_json_without_end_within_itself_is_refused(tmp_path, name, opening, closing):
    line = f'{{"item_id": "a", "t": {opening}1{closing}}}'
    path = write(tmp_path, name, line if name == "i.jsonl" else f"[{line}]")
    with pytest.raises(ValueError, match=f"{name} has lists or objects within each other, more than 100 deep"):
        TableFile(path).names  # noqa: B018


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize("text", ["[" * 900 + "1" + "]" * 900, '{"a":' * 500 + '"b"' + "}" * 500, "[" * 9000])
def test_what_is_nested_without_end_in_a_cell_stays_as_it_stands(table, text):
    quoted = '"' + text.replace('"', '""') + '"'
    dataset = table("user_id,item_id\nu,a\nu,a\n", f"item_id,title\na,{quoted}\n")
    assert texts(dataset) == {"a": {"title": text}}


def test_an_archive_that_unpacks_hugely_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa4rec.datasets_builders.reading.LARGEST_WHOLE", 2**20)
    with zipfile.ZipFile(tmp_path / "shop.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sales.csv", b"user_id,item_id\n" + b"u,a\n" * 2**20)
    with pytest.raises(ValueError, match="shop.zip unpacks to 4 MB, more than tables do"):
        build("table", None, [tmp_path / "shop.zip"])


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    "content",
    [
        '[{"item_id": "a", "title": "Tea"},\n {"item_id": "b", "title": 1984}]',
        '{"item_id": "a", "title": "Tea"}\n{"item_id": "b", "title": 1984}\n',
        "{'item_id': 'a', 'title': u'Tea'}\n{'item_id': u'b', 'title': 1984}\n",
    ],
)
def test_json_may_be_an_array_and_change_its_mind_about_types(table, content):
    dataset = table("user_id,item_id\nu,b\nu,a\n", content, names=("sales.csv", "products.json"))
    assert texts(dataset) == {"a": {"title": "Tea"}, "b": {"title": "1984"}}


@pytest.mark.parametrize(
    ("names", "sales", "products", "message"),
    [
        (None, None, 'item_id,title\na,"Tea\nb,Pot\nc,Cup', "products.csv: in line 2 a quotation mark opens"),
        (None, None, 'item_id,title\na,"Tea\nb,Pot\nc,"Cup"\n', "products.csv: in line 2 a quotation mark opens"),
        (None, None, 'item_id,title\na,Tea\nb,"A 5" pot"\n', "products.csv: in line 3 a quotation mark opens"),
        (None, "user_id,item_id,user_id\nu,a,v\n", PRODUCTS, "two columns are called 'user_id'"),
        (None, "user_id,item_id\nu,a\nu\n", PRODUCTS, "sales.csv cannot be read"),
        (None, "user_id,item_id\nu,a\n".encode("utf-16-le"), PRODUCTS, "is no text: it holds zero bytes"),
        (
            ("sales.csv", "products.json"),
            None,
            '{"user_id": {"0": 1}, "item_id": {"0": 1}, "title": {"0": "x"}}',
            "holds lists or objects where an id is needed",
        ),
        (None, "user_id,item_id\nu,1.70928E+12\n", PRODUCTS, "row 1: '1.70928E.12' is an id that lost its digits"),
        (None, "user_id,item_id\n2e+20,a\n", PRODUCTS, "row 1: '2e.20' is an id that lost its digits"),
        (None, "user_id,item_id\nu,1.70928E12\n", PRODUCTS, "row 1: '1.70928E12' is an id that lost its digits"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(table, names, sales, products, message):
    with pytest.raises(ValueError, match=message) as error:
        table(sales or "user_id,item_id\nu,a\n", products, **({"names": names} if names else {}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["sales.csv.gz", "sales.jsonl.gz"])
def test_a_file_without_line_ends_is_refused_early(tmp_path, name):
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    with pytest.raises(ValueError, match="has a line of more than 16 MB"):
        build("table", data_files=[tmp_path / name, write(tmp_path, "products.csv", PRODUCTS)])


# Times and ratings


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    ("times", "expected", "words"),
    [
        ((1709280001, 1709280000), [1709280000000, 1709280001000], "in seconds"),
        ((1709280000001, 1709280000000), [1709280000000, 1709280000001], "in milliseconds"),
        ((1709280000000002, 1709280000000001), [1709280000000, 1709280000000], "in microseconds"),
        ((1709280000000000003, 1709280000000000002), [1709280000000, 1709280000000], "in nanoseconds"),
        (("1709280000.75", "1709280000.5"), [1709280000500, 1709280000750], "in seconds"),
        ((20240302, 20240301), [1709251200000, 1709337600000], "as days"),
        (("2024-03-01T10:00:00.123457", "2024-03-01T10:00:00.123456"), [1709287200123] * 2, "dates with time of day"),
        (("2024-03-01 10:00:00+01:00", "2024-03-01 08:30:00Z"), [1709281800000, 1709283600000], "time of day"),
        (("13/12/2024 10:00", "01/12/2024 10:00"), [1733047200000, 1734084000000], "day first"),
        (("12/13/2024", "12/1/2024"), [1733011200000, 1734048000000], "month first"),
        (("13.12.2024", "01.12.2024"), [1733011200000, 1734048000000], "as days, day first"),
        (("Mar 2 2024", "1 March 2024"), [1709251200000, 1709337600000], "as days"),
        (("3/13/2024 1:05 PM", "3/13/2024 11:05 AM"), [1710327900000, 1710335100000], "month first"),
        (("45123.5", "45123.25"), [1689487200000, 1689508800000], "in a spreadsheet's days"),
        (("45124", "45123"), [1689465600000, 1689552000000], "in a spreadsheet's days"),
        (("Wed Oct 10 20:19:24 +0000 2018", "Wed Oct 10 20:18:24 +0000 2018"), [1539202704000, 1539202764000], "of "),
        (("Wed Oct 10 20:19:24 2018", "Wed Oct  3 20:19:24 2018"), [1538597964000, 1539202764000], "time of day"),
        (("31/Mar/2024:10:30:00 +0000", "01/Mar/2024:10:30:00 +0000"), [1709289000000, 1711881000000], "time of day"),
        (("2024-03-01 10:00+01:00[Europe/Berlin]", "2024-03-01 8:00Z[UTC]"), [1709280000000, 1709283600000], "of day"),
        (("31.03.2024 10:30 Uhr", "01.03.2024 10:30 Uhr"), [1709289000000, 1711881000000], "day first"),
    ],
)  # fmt: skip
def test_times_are_known_by_the_whole_column(table, times, expected, words):
    """The file's first row is the later one, so an order that was lost shows."""
    dataset = table(f"user_id,item_id,timestamp\nu,a,{times[0]}\nu,b,{times[1]}\n")
    assert histories(dataset) == {"u": ["b", "a"]}
    assert dataset.sequences["timestamps"].to_pylist() == [expected]
    assert words in report(dataset)


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_typed_times_of_parquet(table, unit, zone):
    times = pa.array([1709280001, 1709280000]).cast(pa.timestamp("s")).cast(pa.timestamp(unit))
    if zone:
        times = times.cast(pa.int64()).cast(pa.timestamp(unit, zone))
    sales = {"user_id": ["u", "u"], "item_id": ["a", "b"], "when": times}
    dataset = table(sales, names=("sales.parquet", "products.csv"))
    assert histories(dataset) == {"u": ["b", "a"]}
    assert dataset.sequences["timestamps"].to_pylist() == [[1709280000000, 1709280001000]]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (("1709280000", "1709280000000"), r"\(row 1\) is seconds, but '1709280000000' \(row 2\) is milliseconds"),
        (("1709280000", "20240301"), r"\(row 2\) is a date: a column has one unit"),
        (("1709280000", "nan"), r"'nan' is not a date and time \(row 2\)"),
        (("1709280000", "inf"), r"'inf' is not a date and time \(row 2\)"),
        (("1709280000", "1e30"), r"'1e30' is not a date and time \(row 2\)"),
        (("1709280000", "-1709280000"), r"\(row 2\)"),
        (("1709280000", "17092"), r"'17092' is not a date and time \(row 2\).*timestamp=none"),
        (("0001-01-01", "2024-03-01"), r"'0001-01-01' is not a date and time \(row 1\)"),
        (("9999-12-31", "2024-03-01"), r"'9999-12-31' is not a date and time \(row 1\)"),
        (("2024-03-01", "2024-02-30"), r"'2024-02-30' is not a date and time \(row 2\)"),
        (("1", "2"), "timestamp_unit= says which it is"),
        (("01/12/2024", "02/11/2024"), r"'01/12/2024' \(row 1\) may have the day or the month first.*date_order="),
        (("01/12/2024 10:00", "02/11/2024 10:00"), "date_order=day_first or date_order=month_first"),
        (("13/12/2024", "12/13/2024"), r"\(row 1\) has the day first and '12/13/2024' \(row 2\) the month"),
        (("2024-03-01 10:00", "2024-03-01 10:00Z"), r"\(row 2\) has a time zone and .* \(row 1\) has none"),
        (("2024-03-01 10:00:36", "2024-03-01 10:00"), None),
        (("2024-03-01 10:00:36", "2024-03-01 10:00 cut"), r"the file ends inside its last value \(row 2\)"),
    ],
)  # fmt: skip
def test_times_that_cannot_be_are_refused_by_row(table, times, message):
    sales = f"user_id,item_id,timestamp\nu,a,{times[0]}\nu,b,{times[1]}"
    sales = sales.removesuffix(" cut") if sales.endswith(" cut") else sales + "\n"
    if message is None:
        assert histories(table(sales)) == {"u": ["b", "a"]}
        return
    with pytest.raises(ValueError, match=message):
        table(sales)


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize("clock", ["", " 10:00"])
@pytest.mark.parametrize(("order", "expected"), [("day_first", ["b", "a"]), ("month_first", ["a", "b"])])
def test_the_order_of_day_and_month_may_be_said(table, clock, order, expected):
    sales = f"user_id,item_id,timestamp\nu,a,01/12/2024{clock}\nu,b,02/11/2024{clock}\n"
    assert histories(table(sales, date_order=order)) == {"u": expected}


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2. März 2024", "2024-03-02"), ("1 février 2024", "2024-02-01"), ("2 de marzo de 2024", "2024-03-02"),
        ("lun., 2 mai 2024", "2024-05-02"), ("2 mei 2024", "2024-05-02"), ("2 Sept. 2024", "2024-09-02"),
        ("20240302T000000Z", "2024-03-02"), ("20240302000000", "2024-03-02"), ("Sat, 02 Mar 2024", "2024-03-02"),
        ("2024/3/2", "2024-03-02"), ("2 marraskuu 2024", None), ("2 junk 2024", None), ("2024-02-30", None),
        ("2024-W09-5", None), ("2024-03", None), ("2024-03-02 10:00 CET", None), ("0000-00-00 00:00:00", None),
    ],
)  # fmt: skip
def test_dates_in_words_of_other_languages(text, day):
    found = parse_dates(pa.array([text]), "day_first").cast(pa.timestamp("ns")).cast(pa.date32(), safe=False)
    assert str(found[0].as_py()) == str(day)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["1.70928E+12", "1.70929E+12"], r"'1.70928E\+12' \(row 1\) lost its digits as a number"),
        (["1.709280001E+09", "1.709280002E+09"], None),
        (["24/03/02", "24/03/01"], "may have the day or the year first: say date_order=day_first"),
        (["31.12.24", "01.03.24"], None),
        (["3/2/2024 1:05\u202fPM", "3/13/2024 1:05\u202fPM"], None),
        (["1709280000", "0"], r"'0' is not a date and time \(row 2\)"),
        (["45353", "1709280000"], r"'45353' \(row 1\) is a spreadsheet's days, but"),
        (["30000", "29999"], r"'30000' is not a date and time"),
    ],
)  # fmt: skip
def test_times_that_may_mislead(times, message):
    def read():
        yield pa.array(times)

    if message is None:
        read_time_column(read, "t")
        return
    with pytest.raises(ValueError, match=message):
        read_time_column(read, "t")


@pytest.mark.parametrize("word", ["NULL", "N/A", "\\N", "NaT", ""])
def test_words_for_nothing_are_no_times(table, word):
    sales = f"user_id,item_id,timestamp\nu,b,2024-03-02\nu,a,{word}\n"
    with pytest.raises(ValueError, match="row 2 has no value in column 'timestamp'; .* incomplete_rows=drop"):
        table(sales)


def test_items_without_an_id_follow_incomplete_rows(table):
    products = PRODUCTS + ",Jar\n"
    with pytest.raises(ValueError, match="products.csv: row 3 has no value in column 'item_id'"):
        table(SALES, products)
    assert list(texts(table(SALES, products, incomplete_rows="drop"))) == ["a", "b"]


def test_a_known_unit_is_taken_at_its_word(table):
    dataset = table("user_id,item_id,timestamp\nu,a,2\nu,b,1\n", timestamp_unit="s")
    assert dataset.sequences["timestamps"].to_pylist() == [[1000, 2000]]


@pytest.mark.parametrize("rating", ["1e400", "nan", "inf", "99", "-3", "good", '"1,000"', "4/5", "80%", "True"])
def test_ratings_that_cannot_be_are_refused_by_row(table, rating):
    with pytest.raises(ValueError, match=r"column 'stars': .* \(row 2\) is no rating between 0 and 10"):
        table(f"user_id,item_id,stars\nu,a,5\nu,b,{rating}\n")


def test_ratings_on_another_scale_and_with_decimal_commas(table):
    dataset = table("user_id,item_id,rating\nu,a,99\nu,b,-1\n", rating_range=[-10, 100])
    assert dataset.sequences["ratings"].to_pylist() == [[99, -1]]
    dataset = table("user_id;item_id;rating\nu;a;4,5\nu;b;,5\n")
    assert dataset.sequences["ratings"].to_pylist() == [[4.5, 0.5]]


# Texts and ids


def test_titles_of_numbers_are_text(table):
    dataset = table("user_id,item_id\nu,a\nu,b\n", "item_id,title,brand\na,1984,x\nb,2001,y\n")
    assert texts(dataset) == {"a": {"title": "1984", "brand": "x"}, "b": {"title": "2001", "brand": "y"}}


def test_text_of_every_type_of_parquet(table):
    columns = {
        "item_id": pa.array([1, 2]),
        "title": pa.array(["Tea", "Pot"]).dictionary_encode(),
        "maker": pa.array(["x", "y"], pa.string_view()),
        "large": pa.array(["l", None], pa.large_string()),
        "tags": pa.array([["x", None, "y"], ["z"]]),
        "categories": pa.array([[["Beauty", "Hair"]], []]),
        "made": pa.array([{"by": "Acme", "in": {"town": "York"}, "year": None}, None]),
        "bytes": pa.array([b"\xff\x00", b"ok"]),
        "price": pa.array([1.5, 2.0]),
        "fresh": pa.array([True, False]),
    }
    sales = {"user_id": [10**18 + 1, 10**18 + 1], "item_id": pa.array([1, 2], pa.float64())}
    names = ("sales.parquet", "products.parquet")
    dataset = table(sales, columns, names=names)
    assert texts(dataset)["1"] == {
        "title": "Tea", "maker": "x", "large": "l", "tags": "x y", "categories": "Beauty Hair",
        "made": "by Acme in town York",
    }  # fmt: skip
    assert histories(dataset) == {str(10**18 + 1): ["1", "2"]}
    assert "not used: 'bytes' (no text), 'price' (no text), 'fresh' (no text)" in report(dataset)
    dataset = table(sales, columns, names=names, attributes=["made", "bytes", "price", "fresh"])
    assert texts(dataset)["1"] == {"made": "by Acme in town York", "bytes": "ff00", "price": "1.5", "fresh": "true"}


def test_prices_with_decimal_commas_and_pictures_are_no_text(table):
    products = (
        "item_id;title;price;picture\na;Tea;2,50;https://shop.example/a.png\nb;Pot;3;https://shop.example/b.png\n"
    )
    dataset = table("user_id;item_id\nu;a\nu;b\n", products)
    assert dataset.attributes == ["title"]
    assert "not used: 'price' (no text), 'picture' (web addresses)" in report(dataset)


def test_lists_and_objects_inside_a_text_are_opened(table):
    rows = [
        {"item_id": "a", "title": "[1984]", "details": json.dumps({"Brand": "Acme", "Colours": ["red", "blue"]})},
        {"item_id": "b", "title": "[Import] Pot", "details": "['Beauty', 'Hair']"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    dataset = table("user_id,item_id\nu,a\nu,b\n", lines, names=("sales.csv", "products.jsonl"))
    assert texts(dataset) == {
        "a": {"title": "[1984]", "details": "Brand Acme Colours red blue"},
        "b": {"title": "[Import] Pot", "details": "Beauty Hair"},
    }


def test_an_empty_list_or_object_inside_a_text_is_empty(table):
    empty = ["[]", "{}", "['']", " [ ] ", "[None]", "[[], {}]"]
    sales = "user_id,item_id\n" + "".join(f"u,{row}\n" for row in range(len(empty)))
    rows = "".join(f'{row},Pot {row},"{text}"\n' for row, text in enumerate(empty))
    dataset = table(sales, f"item_id,title,tags\n{rows}9,Tea,\"['red']\"\n", all_items=True)
    told = [item.get("tags") for item in texts(dataset).values()]
    assert told == [None] * len(empty) + ["red"]


def test_words_for_nothing_are_no_texts(table):
    dataset = table(SALES, "item_id,title,brand\na,Tea,NULL\nb,nan,Acme\n")
    assert texts(dataset) == {"a": {"title": "Tea"}, "b": {"brand": "Acme"}}
    assert "products.csv: words like NULL and nan in 'brand' are read as nothing" in report(dataset)


def test_types_as_mongodb_writes_them(table):
    lines = '{"user_id": "u", "item_id": "%s", "created_at": {"$date": "2024-03-0%dT10:00:00Z"}}\n'
    dataset = table(lines % ("b", 2) + lines % ("a", 1), names=("sales.jsonl", "products.csv"))
    assert histories(dataset) == {"u": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.jsonl", '{"customer_id": "c", "line_items": [{"sku": "a"}, {"sku": "b"}]}\n'),
        ("s.csv", 'customer_id,line_items\nc,"[""a"", ""b""]"\n'),
    ],
)
def test_lists_of_items_in_one_row_name_the_way_out(table, name, content):
    with pytest.raises(ValueError, match="'line_items' holds lists: write one row for each member"):
        table(content, names=(name, "p.csv"))


def test_returns_are_counted_and_said(table):
    dataset = table("user_id,item_id,Quantity\nu,a,1\nu,a,-1\nu,b,2\n")
    assert "1 rows have a 'Quantity' below 0 (returns?)" in report(dataset)


def test_ids_wrapped_for_a_spreadsheet(table):
    assert histories(table('user_id,item_id\nu,"=""a"""\nu,b\n')) == {"u": ["a", "b"]}


def test_ids_keep_their_letters(table):
    rows = [{"user_id": "2024-03-01", "item_id": "007"}, {"user_id": "2024-03-01", "item_id": "7"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    dataset = table(lines, "item_id,title\n007,Bond\n 7 ,Seven\n", names=("sales.jsonl", "products.csv"))
    assert histories(dataset) == {"2024-03-01": ["007", "7"]}


@pytest.mark.slow("each spelling is a build of its own")
@pytest.mark.parametrize(
    "header",
    ["title,place", "row,title", "Title,title", "domain,place", "user_id,timestamp", "text_1,text_0", "item id,a.b"],
)
def test_columns_may_be_called_anything(table, tmp_path, header):
    dataset = table("user_id,item_id\nu,b\nu,a\n", f"item_id,{header}\na,x,y\nb,v,w\n")
    assert dataset.attributes == header.split(",")
    assert [list(text.values()) for text in texts(dataset).values()] == [["x", "y"], ["v", "w"]]
    save_dataset(dataset, tmp_path / "built")
    assert load_dataset_dir(tmp_path / "built").attributes == header.split(",")


def test_an_attribute_called_domain_may_be_the_only_one(table):
    assert texts(table("user_id,item_id\nu,b\nu,a\n", "item_id,domain\na,x\nb,v\n")) == {
        "a": {"domain": "x"},
        "b": {"domain": "v"},
    }


def test_items_that_contradict_themselves_name_both_rows(table):
    products = "item_id,title\na,Tea\nb,Pot\na,Tea\nb,Jar\n"
    with pytest.raises(ValueError, match="item 'b' has different texts in rows 2 and 4.*duplicate_items=first"):
        table("user_id,item_id\nu,b\nu,a\n", products)
    assert texts(table("user_id,item_id\nu,b\nu,a\n", products, duplicate_items="first"))["b"] == {"title": "Pot"}


def test_items_in_no_interaction_are_counted(table):
    dataset = table("user_id,item_id\nu,a\n")
    assert "1 items that are in no interaction (left) are not in the catalogue; all_items=true keeps them" in report(
        dataset
    )


# Tables of others, as they come: no option, no rename


@pytest.mark.parametrize(
    ("folder", "counts", "attributes", "fingerprint"),
    [
        ("movielens/ml-latest-small", (610, 9_724, 100_836), ["title", "genres"], "0f55d9ac"),
        ("amazon_2018/raw_gift_cards", (458, 148, 2_972), None, None),
        ("online_retail/OnlineRetail.csv.gz", (4_372, 3_684, 406_829), ["Description"], None),
    ],
)
def test_real_tables_are_read_as_they_come(real_file, folder, counts, attributes, fingerprint):
    """MovieLens' fingerprint is what naming its columns by options gave before they were found."""
    dataset = build("table", data_files=real_file(folder))
    assert (dataset.num_users, dataset.num_items, dataset.info["interactions"]) == counts
    assert attributes is None or dataset.attributes == attributes
    assert fingerprint is None or dataset.fingerprint.startswith(fingerprint)
    assert "timestamps" in dataset.sequences.column_names


def test_movielens_in_recboles_files_is_movielens(real_file, tmp_path):
    movielens = real_file("movielens/ml-latest-small")
    atomic = build("table", data_files=write_atomic(movielens, tmp_path / "ml"))
    assert atomic.sequences.equals(build("table", data_files=movielens).sequences)
    assert atomic.attributes == ["movie_title", "class"]


@pytest.mark.slow("writes a shop as a workbook")
def test_a_book_and_a_european_export_of_one_shop_tell_the_same(tmp_path):
    book = build("table", data_files=write_book(tmp_path / "shop.xlsx"))
    (tmp_path / "export").mkdir()
    export = build("table", data_files=write_export(tmp_path / "export"))
    assert book.sequences.drop_columns("timestamps").equals(export.sequences.drop_columns("timestamps"))
    assert "as dates with time of day, day first; not used: 'Bestellung', 'Betrag'" in report(export)
    assert (book.attributes, export.attributes) == (["Title", "Category"], ["Bezeichnung", "Kategorie"])
    assert texts(export)["100"]["Bezeichnung"] == "Green tea (für zu Hause)"
