"""scripts/serve.py: answers are the pipeline's, a reload leaves no gap, and what cannot be is one sentence."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from conftest import ROOT, TINY_ITEMS
from fastapi.testclient import TestClient

from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.scripts import serve
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files

IDS = [f"p{row}" for row in range(12)]
ITEMS = [{"item_id": item_id, **item} for item_id, item in zip(IDS, TINY_ITEMS, strict=True)]


@pytest.fixture
def pipe(tiny_config, tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    tiny_config.initializer_range = 0.3
    model = Jepa4RecModel(tiny_config).eval()
    save_checkpoint_files(model, tiny_tokenizer, tmp_path / "checkpoint")
    made = SequentialRecommendationPipeline(model, tiny_tokenizer)
    made.add_items(ITEMS, popularity=range(12))
    made.save_catalogue(tmp_path / "catalogue")
    return made


@pytest.fixture
def service(pipe, tmp_path):
    other = SequentialRecommendationPipeline(pipe.model, pipe.tokenizer)
    return serve.Service(other, str(tmp_path / "catalogue"), at_once=2)


@pytest.fixture
def client(service):
    with TestClient(serve.make_app(service), raise_server_exceptions=False) as made:
        yield made


def test_answers_are_those_of_the_pipeline(client, pipe):
    question = {"history": ["p0", {"title": "Tent"}], "top_k": 3, "exclude_history": True, "most_per": {"brand": 1}}
    question |= {"boosts": {"p7": 0.5}, "diversity": 0.2, "filter": IDS[2:]}
    asked = client.post("/recommend", json=question)
    history = {"history": question.pop("history")}
    assert asked.status_code == 200 and asked.json() == {"items": pipe(history, **question)}
    several = client.post("/recommend", json={"histories": [["p0"], [], ["gone"], [{"title": " "}]], "top_k": 2})
    answers = several.json()["answers"]
    assert answers[0] == {"items": pipe({"history": ["p0"]}, top_k=2)}
    assert answers[1] == answers[2] == {"items": pipe({"history": []}, top_k=2)}
    assert "has no text" in answers[3]["error"]


def test_objects_are_read_and_bounded(client, pipe):
    maker = {"id": 1, "name": "Hearth & Vale", "lines": [{"of": "teapots"}, 2.0]}
    asked, told = ({"title": "Teapot", "maker": own} for own in (maker, pipe.tokenizer.in_words(maker)))
    answers = [client.post("/recommend", json={"history": [item]}).json() for item in (asked, told)]
    assert answers[0] == answers[1] == {"items": pipe({"history": [told]})}
    deep = "a"
    for _ in range(300):
        deep = {"in": deep}
    for wrong in (dict.fromkeys(map(str, range(101)), 1), {"name": "x" * 5000}, deep):
        refused = client.post("/recommend", json={"history": [{"maker": wrong}]})
        assert refused.status_code in (400, 422) and list(refused.json()) == ["error"]
    deep = {"in": {"in": [[{"in": "a"}]]}}
    for _ in range(60):
        deep = {"in": [deep]}
    assert client.post("/recommend", json={"history": [{"maker": deep}]}).status_code == 200


@pytest.mark.parametrize(
    "question, told",
    [
        ({"history": ["gone"], "unknown": "error"}, "Item 'gone' is not in the catalogue"),
        ({"history": ["p0"], "top_k": 50, "strict": True}, "top_k is 50, but 12 items are left"),
        ({"history": ["p0"], "unknown": "skip"}, 'unknown is \'skip\'; it is "error" or "ignore"'),
        ({"history": ["p0"], "filter": ["p1", "q"], "unknown": "error"}, "'q' is not in the catalogue"),
        ({"history": ["p0"], "top_k": 0}, "top_k: Input should be greater"),
        ({"history": ["p0"], "top_k": 1000}, "top_k: Input should be less"),
        ({"history": ["p0"], "topk": 3}, "topk: Extra inputs"),
        ({"history": ["p0"] * 1001}, "history: List should have at most 1000 items"),
        ({"histories": [["p0"]] * 101}, "histories: List should have at most 100"),
        ({"history": [{"title": "x" * 5000}]}, "history.0: "),
        ({"history": "p0"}, "history: Input should be a valid list"),
        ({"history": [None]}, "history.0: "),
        ({"history": [True]}, "history.0: "),
        ({}, 'Give either "history" or "histories"'),
        ({"history": [], "histories": [[]]}, 'Give either "history" or "histories"'),
        ([1], "The request: "),
        (None, "The request: "),
    ],
)
def test_what_cannot_be_is_one_sentence(client, question, told):
    asked = client.post("/recommend", json=question)
    assert asked.status_code == 422 and list(asked.json()) == ["error"]
    assert told in asked.json()["error"] and "\n" not in asked.json()["error"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"history": ["\\ud83c"]}', b'{"history": [{"title": "\\ud83c"}]}',
                b'{"history": ["p0"], "diversity": NaN}', b"[" * 100_000, b'{"history": [1e999]}'],
)  # fmt: skip
def test_a_broken_body_is_one_sentence(client, content):
    asked = client.post("/recommend", content=content, headers={"Content-Type": "application/json"})
    assert asked.status_code in (400, 422) and list(asked.json()) == ["error"]


def test_a_large_body_is_refused_before_it_is_read(client):
    asked = client.post("/recommend", content=b" " * (serve.MOST_BYTES + 1))
    assert asked.status_code == 413 and "larger than 1,048,576 bytes" in asked.json()["error"]


def test_no_more_of_an_endless_body_is_read(service):
    sent, told = [], []

    async def receive():
        sent.append(2**16)
        return {"type": "http.request", "body": b" " * 2**16, "more_body": True}

    async def send(message):
        told.append(message)

    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": [], "query_string": b""}
    asyncio.run(serve.make_app(service)(scope, receive, send))
    assert told[0]["status"] == 413 and sum(sent) == serve.MOST_BYTES + 2**16


def test_too_many_at_once_are_sent_away(client, service):
    service.waiting = serve.MOST_WAITING
    asked = client.post("/recommend", json={"history": ["p0"]})
    assert asked.status_code == 503 and asked.headers["Retry-After"] == "1"
    assert client.get("/health").status_code == 200
    service.waiting = 0
    assert client.post("/recommend", json={"history": ["p0"]}).status_code == 200
    assert service.waiting == 0


def test_a_reload_reads_the_folder_and_a_failed_one_keeps_the_old(client, pipe, tmp_path):
    assert client.get("/health").json()["items"] == 12
    pipe.remove_items(["p11"])
    pipe.save_catalogue(tmp_path / "catalogue")
    assert client.get("/health").json()["items"] == 12
    assert client.post("/reload").json()["items"] == 11
    (tmp_path / "catalogue" / "items.jsonl").write_text("")
    asked = client.post("/reload")
    assert asked.status_code == 422 and "is damaged" in asked.json()["error"]
    told = client.get("/health").json()
    assert told["items"] == 11 and "is damaged" in told["reload_failed"]
    assert len(client.post("/recommend", json={"history": ["p0"]}).json()["items"]) == 10
    pipe.save_catalogue(tmp_path / "catalogue")
    assert "reload_failed" not in client.post("/reload").json()


@pytest.mark.slow("asks all the while it is reloaded")
def test_nobody_sees_half_a_catalogue_while_it_is_reloaded(client, pipe, tmp_path):
    question, stop, kinds = {"history": [TINY_ITEMS[0]], "top_k": 12}, threading.Event(), set()
    whole = pipe({"history": [TINY_ITEMS[0]]}, top_k=12)
    expected = {12: whole, 6: [own for own in whole if own["item_id"] in IDS[:6]]}

    def ask(_):
        while not stop.is_set():
            asked = client.post("/recommend", json=question)
            items = asked.json()["items"]
            assert asked.status_code == 200
            assert [own["item_id"] for own in items] == [own["item_id"] for own in expected[len(items)]]
            kinds.add(len(items))

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, number) for number in range(4)]
        try:
            for _ in range(5):
                pipe.remove_items(IDS[6:])
                pipe.save_catalogue(tmp_path / "catalogue")
                assert client.post("/reload").status_code == 200
                time.sleep(0.1)
                pipe.add_items(ITEMS[6:])
                pipe.save_catalogue(tmp_path / "catalogue")
                assert client.post("/reload").status_code == 200
                time.sleep(0.1)
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert kinds == {6, 12}


def test_metrics_count(client):
    client.post("/recommend", json={"history": ["p0"]})
    client.post("/recommend", json={"history": ["gone"], "unknown": "error"})
    client.get("/some/secret/place")
    client.post("/reload")
    told = client.get("/metrics").text
    assert 'seqrec_requests_total{path="/recommend",status="200"} 1.0' in told
    assert 'seqrec_requests_total{path="/recommend",status="422"} 1.0' in told
    assert 'seqrec_requests_total{path="other",status="404"} 1.0' in told and "secret" not in told
    assert 'seqrec_reloads_total{outcome="done"} 1.0' in told and "seqrec_catalogue_items 12.0" in told
    assert "seqrec_answer_seconds_count 2.0" in told


@pytest.mark.slow("starts the service in a process of its own")
def test_the_command_serves_and_reloads_on_a_hangup(pipe, tmp_path, unused_port):
    command = [sys.executable, ROOT / "scripts" / "serve.py", tmp_path / "checkpoint", tmp_path / "catalogue"]
    started = subprocess.Popen([*command, "--port", str(unused_port)], stdout=subprocess.PIPE, text=True)
    place = f"http://127.0.0.1:{unused_port}"
    try:
        assert "12 items" in started.stdout.readline()
        until(lambda: httpx.get(f"{place}/health").status_code == 200)
        asked = httpx.post(f"{place}/recommend", json={"history": ["p0", "p4"], "top_k": 4}, timeout=60)
        expected = pipe({"history": ["p0", "p4"]}, top_k=4)
        assert [own["item_id"] for own in asked.json()["items"]] == [own["item_id"] for own in expected]
        pipe.remove_items(["p11"])
        pipe.save_catalogue(tmp_path / "catalogue")
        os.kill(started.pid, signal.SIGHUP)
        until(lambda: httpx.get(f"{place}/health").json()["items"] == 11)
    finally:
        started.terminate()
        started.wait(30)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(true, seconds=30):
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if true():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("it did not come about")
