"""Builders: the forms a source comes in, the counts of the real files, and what bad input is answered."""

import csv
import datetime
import functools
import gzip
import http.server
import json
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from processes import python

from jepa4rec.datasets_builders import DATASETS, build, leave_one_out, load_dataset_dir, save_dataset
from jepa4rec.datasets_builders.amazon_2018 import Amazon2018
from jepa4rec.datasets_builders.online_retail import COLUMNS, OnlineRetail
from jepa4rec.datasets_builders.toy_shop import ToyShop
from jepa4rec.scripts import build_dataset

ROOT = Path(__file__).resolve().parents[2]


def counts(dataset) -> tuple[int, int, int]:
    return dataset.info["users"], dataset.info["items"], dataset.info["interactions"]


# Online Retail


def invoices(rows: int = 400) -> list[list]:
    """Made-up invoice lines in the publisher's schema, with all that makes the real ones awkward."""
    chance = random.Random(0)
    start = datetime.datetime(2010, 12, 1, 8, 26)
    lines = []
    for number in range(rows):
        code = chance.choice(["85123A", "71053", "84406B", "22752", "POST"])
        title = {"85123A": " HEART T-LIGHT HOLDER ", "71053": 'LANTERN, "WHITE"', "84406B": "£5 GIFT CAFÉ"}.get(
            code, code
        )
        customer = chance.choice([17850, 13047, 12583, 14688, None])
        time = start + datetime.timedelta(minutes=number // 7)
        line = [536365 + number // 7, code, title if chance.random() < 0.9 else "", 6, time, 2.55, customer, "France"]
        lines += [line] * chance.choice([1, 1, 1, 2])
    return lines


def write_invoices(path: Path, encoding="utf-8", date="%Y-%m-%d %H:%M:%S", customer="{}.0", opener=open) -> Path:
    with opener(path, "wt", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for *start, time, price, buyer, country in invoices():
            # strftime pads with zeros; the spreadsheet form does not
            shown = time.strftime(date) if date else f"{time.month}/{time.day}/{time.year} {time.hour}:{time:%M}"
            writer.writerow([*start, shown, price, customer.format(buyer) if buyer else "", country])
    return path


def write_workbook(path: Path) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    for line in [COLUMNS, *invoices()]:
        book.active.append([int(cell) if str(cell).isdigit() else cell for cell in line])
    book.save(path)
    return path


@pytest.fixture(scope="module")
def retail_forms(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("retail")
    forms = {
        "csv": write_invoices(folder / "OnlineRetail.csv"),
        "csv.gz": write_invoices(folder / "OnlineRetail.csv.gz", opener=gzip.open),
        "spreadsheet dates, latin-1": write_invoices(folder / "data.csv", "latin-1", None, "{}"),
        "byte order mark": write_invoices(folder / "bom.csv", "utf-8-sig"),
        "xlsx": write_workbook(folder / "Online Retail.xlsx"),
        "zip": folder / "online+retail.zip",
    }
    with zipfile.ZipFile(forms["zip"], "w") as archive:
        archive.write(forms["xlsx"], "Online Retail.xlsx")
    return forms


@pytest.mark.slow("builds from every form")
def test_online_retail_is_the_same_from_every_form(retail_forms):
    built = {form: build("online_retail", "jepa4rec", path) for form, path in retail_forms.items()}
    assert {form: dataset.fingerprint for form, dataset in built.items()} == dict.fromkeys(
        built, built["csv"].fingerprint
    )


def test_online_retail_jepa4rec_by_hand(retail_forms):
    seen, users = set(), defaultdict(list)
    for line in invoices():
        if line[6] and line[2] and str(line) not in seen:
            seen.add(str(line))
            users[str(line[6])].append(line[2])
    dataset = build("online_retail", "jepa4rec", retail_forms["csv"])
    titles = [text["title"] for text in dataset.item_texts()]
    assert dataset.items["item_id"].to_pylist() == titles
    found = [[titles[item] for item in history] for history in dataset.histories()]
    assert dict(zip(dataset.sequences["user_id"].to_pylist(), found, strict=True)) == users


def test_online_retail_five_core_titles_are_the_most_frequent_description(retail_forms):
    descriptions = defaultdict(Counter)
    for line in invoices():
        if line[6] and line[2]:
            descriptions[line[1]][line[2]] += 1
    dataset = build("online_retail", "five_core", retail_forms["csv"])
    for item, text in zip(dataset.items["item_id"].to_pylist(), dataset.item_texts(), strict=True):
        assert text == {"title": descriptions[item].most_common(1)[0][0]}


RETAIL = "online_retail/OnlineRetail.csv.gz"
RETAIL_FINGERPRINTS = {  # published with every result on these data
    "jepa4rec": "1a5584f07aff7cade3ed31c0ad9131cccf2446eba9918f5d6ecd241ce5063399",
    "five_core": "ed164b2a828243f3db1e7af54fcb913317c619049f05d03a668eb9c03cdc8c2a",
}


@pytest.fixture(scope="module")
def real(real_file):
    """``real(name, config, file)`` -> the dataset of a publisher's file or folder, built once."""

    @cache
    def make(name, config, file, **options):
        return build(name, config, real_file(file), **options)

    return make


@pytest.fixture(scope="module")
def real_retail(real):
    """The real ``jepa4rec`` dataset, built by four threads."""
    return real("online_retail", "jepa4rec", RETAIL, threads=4)


def test_online_retail_jepa4rec_counts_and_fingerprint(real_retail):
    assert counts(real_retail) == (4_181, 3_896, 401_248)
    assert real_retail.fingerprint == RETAIL_FINGERPRINTS["jepa4rec"]


def test_online_retail_five_core_counts_and_fingerprint(real):
    dataset = real("online_retail", "five_core", RETAIL)
    assert counts(dataset) == (4_126, 3_206, 405_208)
    assert dataset.fingerprint == RETAIL_FINGERPRINTS["five_core"]


def test_online_retail_keeps_the_order_of_the_file_inside_an_invoice(real_retail, real_file):
    dataset = real_retail
    seen, users = set(), defaultdict(list)
    with gzip.open(real_file(RETAIL), "rt", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            key = tuple(line.values())
            if line["CustomerID"] and key not in seen:
                seen.add(key)
                users[line["CustomerID"].removesuffix(".0")].append((line["InvoiceDate"], line["Description"]))
    titles = dataset.items["item_id"].to_pylist()
    for user, history in zip(dataset.sequences["user_id"].to_pylist(), dataset.histories(), strict=True):
        expected = [title for _, title in sorted(users[user], key=lambda line: line[0])]
        assert [titles[item] for item in history] == expected


# Amazon


@pytest.mark.parametrize(
    ("name", "config", "folder", "expected", "fingerprint"),
    [
        ("amazon_2018", "unisrec", "amazon_2018/scientific_unisrec", (8_442, 4_385, 59_384), "03beb9b6"),
        ("amazon_2018", "recformer", "amazon_2018/scientific_recformer_layout", (8_442, 4_385, 59_384), "90118929"),
        ("amazon_2018", "raw", "amazon_2018/raw_gift_cards", (458, 148, 2_972), "3fe45460"),
        ("amazon_2014", "sequences", "amazon_2014_beauty", (22_363, 12_101, 198_502), "5575bbac"),
    ],
)
def test_amazon_counts_and_fingerprints(real, name, config, folder, expected, fingerprint):
    dataset = real(name, config, folder)
    assert counts(dataset) == expected
    assert dataset.fingerprint.startswith(fingerprint)


def test_both_layouts_of_scientific_hold_the_same_histories_repeats_included(real):
    unisrec = real("amazon_2018", "unisrec", "amazon_2018/scientific_unisrec")
    recformer = real("amazon_2018", "recformer", "amazon_2018/scientific_recformer_layout")
    assert unisrec.sequences.equals(recformer.sequences)
    assert unisrec.items["item_id"].equals(recformer.items["item_id"])
    assert (unisrec.attributes, recformer.attributes) == (["title"], ["title", "brand", "category"])
    assert sum(len(history) - len(set(history.tolist())) for history in unisrec.histories()) == 289


def test_unisrec_keeps_the_published_split_and_index(real, real_file):
    folder = real_file("amazon_2018/scientific_unisrec")
    dataset = real("amazon_2018", "unisrec", "amazon_2018/scientific_unisrec")
    lines = (folder / "Scientific.test.inter").read_text().splitlines()[1:]
    published = {user: (history.split(), item) for user, history, item in (line.split("\t") for line in lines)}
    names = dict(line.split("\t") for line in (folder / "Scientific.user2index").read_text().splitlines())
    test = leave_one_out(dataset.sequences).test
    for user, history, target in zip(test.user_ids, test.histories, test.targets, strict=True):
        assert published[names[user]] == ([str(item) for item in history], str(target))


def write_unisrec(folder: Path) -> Path:
    files = {
        "train.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n0\t0\t1\n1\t2\t0\n",
        "valid.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n0\t0 1\t2\n",
        "test.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n0\t0 1 2\t2\n",
        "text": "item_id:token\ttext:token_seq\nA\tan anvil. \nB\ta bolt. \nC\ta clamp. \n",
        "item2index": "A\t0\nB\t1\nC\t2\n",
        "user2index": "ann\t0\nbob\t1\n",
    }
    folder.mkdir()
    for ending, text in files.items():
        (folder / f"Tools.{ending}").write_text(text)
    return folder


def test_unisrec_takes_every_interaction_and_users_without_a_test_row(tmp_path):
    dataset = build("amazon_2018", "unisrec", write_unisrec(tmp_path / "tools"))
    assert dataset.sequences.to_pydict() == {"user_id": ["ann", "bob"], "items": [[0, 1, 2, 2], [2, 0]]}
    assert dataset.item_texts()[0] == {"title": "an anvil."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("text", None), r"needs exactly one file named \*\.text"),
        (("test.inter", "h\th\th\n0\t0 1\n"), r"Tools.test.inter: line 2 has 2 tab-separated fields, not 3"),
        (("test.inter", "h\th\th\n0\t0 9\t1\n"), "index '9' is in the interactions but not in the id tables"),
        (("text", "h\th\nA\tanvil\nB\t \nC\tclamp\n"), r"item 'B' \(row 2\) has no text in title"),
    ],
)
def test_broken_unisrec_folders_are_named(tmp_path, change, message):
    folder = write_unisrec(tmp_path / "tools")
    path = folder / f"Tools.{change[0]}"
    path.unlink() if change[1] is None else path.write_text(change[1])
    with pytest.raises((ValueError, OSError), match=message):
        build("amazon_2018", "unisrec", folder)


def test_a_folder_of_another_layout_names_the_config_that_fits(tmp_path):
    for name in ("Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="the layout of config 'raw', not 'unisrec': --config raw"):
        build("amazon_2018", data_files=tmp_path)
    with pytest.raises(ValueError, match="--config unisrec"):
        build("amazon_2018", "recformer", write_unisrec(tmp_path / "tools"))


def test_an_address_that_fails_is_shown_without_its_secrets(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="http://127.0.0.1:9/sales.csv could not be downloaded") as error:
        build("table", data_files="http://me:secret@127.0.0.1:9/sales.csv?token=hidden")
    assert "secret" not in str(error.value) and "hidden" not in str(error.value)


# Own data


SALES = {
    "user_id": ["u", "v", "u", "u", "v"],
    "item_id": [10, 11, 12, 10, 10],
    "timestamp": [1_600_000_300, 1_600_000_200, 1_600_000_100, 1_600_000_300, 1_600_000_400],
    "rating": [5.0, 4.0, 3.0, 2.0, 1.0],
}
PRODUCTS = {"item_id": [12, 11, 10], "title": ["cup", "jar", "pan"], "price": [1.5, 2.0, 9.0], "kind": ["a", "", "b"]}


def write_json_lines(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


WRITERS = {".csv": pa_csv.write_csv, ".parquet": pq.write_table, ".jsonl": write_json_lines}


def write_shop(folder: Path, ending: str = ".csv", **changes) -> list[Path]:
    paths = [folder / f"sales{ending}", folder / f"products{ending}"]
    for path, table in zip(paths, (SALES, PRODUCTS), strict=True):
        columns = {name: column for name, column in {**table, **changes}.items() if name in table}
        WRITERS[ending](pa.table(columns), path)
    return paths


@pytest.mark.parametrize("ending", WRITERS)
def test_table_by_hand_from_every_kind_of_file(tmp_path, ending):
    dataset = build("table", data_files=write_shop(tmp_path, ending))
    assert dataset.items.to_pydict() == {
        "item_id": ["12", "11", "10"],
        "title": ["cup", "jar", "pan"],
        "kind": ["a", "", "b"],
    }
    assert dataset.sequences.to_pydict() == {
        "user_id": ["u", "v"],
        "items": [[0, 2, 2], [1, 2]],
        "timestamps": [
            [1_600_000_100_000, 1_600_000_300_000, 1_600_000_300_000],
            [1_600_000_200_000, 1_600_000_400_000],
        ],
        "ratings": [[3.0, 5.0, 2.0], [4.0, 1.0]],
    }


def test_table_takes_other_names_dates_and_filters(tmp_path):
    (tmp_path / "log.tsv").write_text("who\twhat\twhen\na\tx\t2024-01-02\na\ty\t2024-01-01\nb\tx\t2024-01-01\n")
    (tmp_path / "things.tsv").write_text("code\tname\tlong name\nx\tax\tan axe\ny\tyo\ta yoyo\n")
    files = {"interactions": tmp_path / "log.tsv", "items": tmp_path / "things.tsv"}
    names = {"user_id": "who", "item_id": "what", "timestamp": "when", "items_item_id": "code"}
    dataset = build("table", data_files=files, **names, attributes="long name", min_user_interactions=2)
    assert dataset.items.to_pydict() == {"item_id": ["x", "y"], "long name": ["an axe", "a yoyo"]}
    assert dataset.sequences["items"].to_pylist() == [[1, 0]]
    assert dataset.sequences["timestamps"].to_pylist() == [[1_704_067_200_000, 1_704_153_600_000]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"user_id": "customer"},
            r"sales.csv: column 'customer' is missing; the file has 'user_id', 'item_id', 'time",
        ),
        ({"timestamp": "when"}, "sales.csv: column 'when' is missing"),
        ({"attributes": "titel"}, "products.csv: column 'titel' is missing"),
        ({"min_user_interactions": 4}, "no user is left after filtering"),
        ({"min_user_interaction": 4}, "unknown option 'min_user_interaction': did you mean 'min_user_interactions'"),
        ({"timestamp_unit": "days"}, "timestamp_unit is 'days'; it may be auto, s, ms"),
        ({"timestamp": "user_id"}, "column 'user_id': 'u' is not a date and time"),
    ],
)
def test_table_answers_bad_input_in_one_sentence(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build("table", data_files=write_shop(tmp_path), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": ["cup", "", "pan"]}, r"item '11' \(row 2\) has no text in title or kind"),
        ({"user_id": ["u", "", "u", "u", "v"]}, r"sales.csv: row 2 has no value in column 'user_id'"),
    ],
)
def test_table_names_the_row_that_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        build("table", data_files=write_shop(tmp_path, **changes))


def test_movielens_is_a_table(real_file):
    files = [real_file(f"movielens/ml-latest-small/{name}.csv.gz") for name in ("ratings", "movies")]
    dataset = build("table", data_files=files, user_id="userId", item_id="movieId")
    assert counts(dataset) == (610, 9_724, 100_836)
    assert dataset.attributes == ["title", "genres"]


# `datasets` builders


@pytest.mark.slow("goes through every builder and its cache")
def test_builders_load_and_stream_both_tables(tmp_path):
    cache = str(tmp_path / "cache")
    folder = write_unisrec(tmp_path / "tools")
    files = sorted(str(path) for path in folder.iterdir())
    expected = build("amazon_2018", "unisrec", folder)
    for config, split, table in (
        ("unisrec", "sequences", expected.sequences),
        ("unisrec_items", "items", expected.items),
    ):
        builder = Amazon2018(config_name=config, data_files=files, cache_dir=cache)
        builder.download_and_prepare()
        assert builder.as_dataset(split=split).to_list() == table.to_pylist()
        assert list(builder.as_streaming_dataset(split=split)) == table.to_pylist()


def test_builders_take_options_and_do_not_share_a_cache(tmp_path):
    lengths = []
    for shoppers in (5, 9):
        builder = ToyShop(config_name="default", options={"shoppers": shoppers}, cache_dir=str(tmp_path))
        builder.download_and_prepare()
        lengths.append(len(builder.as_dataset(split="sequences")))
    assert lengths == [5, 9]


def test_a_changed_file_is_not_answered_from_the_cache(tmp_path):
    path = write_invoices(tmp_path / "OnlineRetail.csv")
    lengths = []
    for keep in (10_000, 40):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:keep]))
        builder = OnlineRetail(config_name="jepa4rec", data_files=str(path), cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        lengths.append(sum(map(len, builder.as_dataset(split="sequences")["items"])))
    assert lengths[0] > 40 > lengths[1]


def test_each_builder_has_a_module_of_its_own():
    # `datasets` names cache folders after the module: two builders in one would read each other's rows.
    assert len({builder.__module__ for builder in DATASETS.values()}) == len(DATASETS)
    assert all(issubclass(builder, datasets.ArrowBasedBuilder) for builder in DATASETS.values())


# The script


@pytest.mark.slow("downloads in a process of its own, where the Hub is not switched off")
def test_script_takes_the_publishers_archive_from_a_url(tmp_path, retail_forms):
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=retail_forms["zip"].parent)
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/online+retail.zip"
        command = [python(), str(ROOT / "scripts" / "build_dataset.py"), "online_retail", "--data_files", url]
        command += ["--out", str(tmp_path / "built")]
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **online})
        server.shutdown()
    assert result.returncode == 0, result.stderr
    assert (
        json.loads(result.stdout)["fingerprint"] == build("online_retail", data_files=retail_forms["csv"]).fingerprint
    )


def test_script_prints_one_json_line(tmp_path, capsys):
    files = map(str, write_shop(tmp_path))
    build_dataset.main(["table", "--data_files", *files, "--out", str(tmp_path / "built")])
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["users", "items", "interactions", "average_length", "density", "fingerprint"]
    assert printed["fingerprint"] == load_dataset_dir(tmp_path / "built").fingerprint


def test_script_refuses_in_one_sentence_and_leaves_nothing(tmp_path, capsys):
    missing = tmp_path / "none.csv"
    with pytest.raises(SystemExit) as stop:
        build_dataset.main(["online_retail", "--data_files", str(missing), "--out", str(tmp_path / "built")])
    assert stop.value.code == f"build_dataset: {missing} does not exist" and capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow("kills a process of its own")
def test_a_build_killed_by_the_system_leaves_nothing_that_looks_finished(tmp_path):
    """SIGKILL, which no program can answer, while the plan runs."""
    (tmp_path / "work").mkdir()
    script = [sys.executable, str(ROOT / "scripts" / "build_dataset.py"), "toy_shop", "--out", str(tmp_path / "built")]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "work")}
    process = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "work").glob("seqrec-*/*")):
        time.sleep(0.005)
    process.kill()
    assert process.communicate()[0] == "" and process.returncode < 0
    with pytest.raises(FileNotFoundError, match="is not a built dataset"):
        load_dataset_dir(tmp_path / "built")
    save_dataset(build("toy_shop"), tmp_path / "built")
    assert load_dataset_dir(tmp_path / "built").num_users == 1_800


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("online_retial",), "unknown dataset 'online_retial': did you mean 'online_retail'"),
        (("online_retail", "five-core"), "unknown config 'five-core': did you mean 'five_core'"),
        (("amazon_2018", "unisrec"), "amazon_2018 unisrec has no download address"),
        (("toy_shop", None, "file.csv"), "file.csv does not exist"),
    ],
)
def test_mistyped_names_get_the_nearest(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        build(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "InvoiceNo,StockCode\n1,2\n",
            r"bad.csv: column 'Description' is missing; the file has 'InvoiceNo', 'StockCode'",
        ),
        ("", "bad.csv is empty"),
        (",".join(COLUMNS) + "\n", "bad.csv: there is not a single row"),
        (",".join(COLUMNS) + "\n1,2,3\n", "bad.csv cannot be read"),
        (
            ",".join(COLUMNS) + "\n1,2,x,1,yesterday,1,7,UK\n",
            "column 'InvoiceDate': 'yesterday' is not a date and time",
        ),
        (",".join(COLUMNS) + "\n1,2,x,one,2010-12-01,1,7,UK\n", "column 'Quantity': a value is not a number"),
    ],
)
def test_bad_csv_files_are_named(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        build("online_retail", data_files=tmp_path / "bad.csv")


def test_a_cut_off_archive_is_named(tmp_path, retail_forms):
    (tmp_path / "cut.csv.gz").write_bytes(retail_forms["csv.gz"].read_bytes()[:-2000])
    with pytest.raises(ValueError, match="cut.csv.gz cannot be read"):
        build("online_retail", data_files=tmp_path / "cut.csv.gz")
