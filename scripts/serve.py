"""Serve recommendations over HTTP: a checkpoint and a catalogue, health, metrics, and a reload without a gap.

    pip install 'jepa4rec[serve]'
    python scripts/serve.py RUN_OR_CHECKPOINT CATALOGUE --port 8000
    curl localhost:8000/recommend -H 'Content-Type: application/json' -d '{"history": ["pot"], "top_k": 3}'

POST /recommend   {"history": [...], ...} -> {"items": [{"item_id", "score", "item"}, ...]}; the other names are those
                  of the pipeline: top_k, exclude_history, filter (a list of ids), unknown, strict, boosts, diversity,
                  most_per. {"histories": [[...], ...]} -> {"answers": [{"items": ...} or {"error": sentence}, ...]}
POST /reload      reads the catalogue's folder again, as does the signal HUP; who asks meanwhile gets the old one
GET  /health      {"status": "ok", "items": ..., "loaded": ...}
GET  /metrics     for Prometheus

An error is {"error": sentence}: 422 what cannot be, 413 too large, 503 too many at once. There is no password: let a
proxy stand before it where strangers can reach the port.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("model", help="a run's output_dir, a checkpoint's folder, or its id on the Hub")
PARSER.add_argument("catalogue", help="folder that save_catalogue wrote with this checkpoint")
PARSER.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
PARSER.add_argument("--port", type=int, default=8000, help="default: 8000")
PARSER.add_argument("--index", help="how to search: exact, faiss or binary (default: as the catalogue was saved)")
PARSER.add_argument("--device", help="cpu (default), cuda, ...")
PARSER.add_argument("--at_once", type=int, help="answers worked out at a time (default: the number of cores)")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import asyncio
import os
import signal
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import torch

from jepa4rec.hub.opening import open_pipeline
from jepa4rec.serving.pipeline_catalogue import CataloguePipeline

try:
    import anyio
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException
    from typing_extensions import TypeAliasType
except ImportError as error:
    sys.exit(f"serve: {error.name} is missing: pip install 'jepa4rec[serve]'.")

MOST_BYTES = 2**20  # of a request
MOST_ITEMS = 1000  # of a history
MOST_HISTORIES = 100  # of a request
MOST_WISHED = 200  # top_k
MOST_IDS = 10_000  # of a filter or of boosts
MOST_TEXT = 4000  # letters of an attribute
MOST_WAITING = 64  # requests; more are sent away, which is better for all than to answer each too late

Text = Annotated[str, Field(max_length=MOST_TEXT)]
Id = Annotated[str, Field(max_length=200)] | Annotated[int, Field(strict=True)]
MANY = Field(max_length=100)  # attributes of an item, members of a list or an object
Value = TypeAliasType(
    "Value", "Text | int | float | bool | None | Annotated[list[Value], MANY] | Annotated[dict[Text, Value], MANY]"
)
Attributes = Annotated[dict[Text, Value], MANY]
History = Annotated[list[Id | Attributes], Field(max_length=MOST_ITEMS)]


class Question(BaseModel):
    """One history, or several, and the pipeline's wishes."""

    model_config = ConfigDict(extra="forbid")

    history: History | None = None
    histories: Annotated[list[History], Field(min_length=1, max_length=MOST_HISTORIES)] | None = None
    top_k: Annotated[int, Field(ge=1, le=MOST_WISHED, strict=True)] = 10
    exclude_history: bool = False
    filter: Annotated[list[Id], Field(max_length=MOST_IDS)] | None = None
    unknown: str = "ignore"
    strict: bool = False
    boosts: Annotated[dict[str, float], Field(max_length=MOST_IDS)] | None = None
    diversity: float = 0.0
    most_per: Annotated[dict[Text, int], Field(max_length=10)] | None = None

    def wishes(self) -> dict[str, Any]:
        return self.model_dump(exclude={"history", "histories"})


class Service:
    """A pipeline, the folder of its catalogue, and counts of what happened."""

    def __init__(self, pipe: CataloguePipeline, catalogue: str, at_once: int):
        self.pipe, self.folder = pipe, catalogue
        self.limiter, self.waiting = anyio.CapacityLimiter(at_once), 0
        self._reloading = threading.Lock()
        self.registry = CollectorRegistry()
        metric = partial(Counter, registry=self.registry)
        self.requests = metric("seqrec_requests", "Requests by path and status.", ["path", "status"])
        self.reloads = metric("seqrec_reloads", "Reloads of the catalogue.", ["outcome"])
        self.seconds = Histogram("seqrec_answer_seconds", "Time of an answer.", registry=self.registry)
        self.items = Gauge("seqrec_catalogue_items", "Items in the catalogue.", registry=self.registry)
        self.load_time = Gauge("seqrec_catalogue_loaded_timestamp", "When it was read.", registry=self.registry)
        queue = Gauge("seqrec_requests_waiting", "Requests begun and not answered.", registry=self.registry)
        queue.set_function(lambda: self.waiting)
        self.loaded, self.problem = "", None
        self._load()

    def _load(self) -> None:
        self.pipe.load_catalogue(self.folder)
        now = time.time()
        self.loaded = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        self.items.set(len(self.pipe.catalogue))
        self.load_time.set(now)

    def reload(self) -> None:
        """Read the catalogue again; the old one answers until the new one is whole, and goes on where it is not.

        Raises ValueError or OSError, in a sentence.
        """
        if not self._reloading.acquire(blocking=False):
            raise ValueError("A reload is running already.")
        try:
            self._load()
            self.problem = None
        except (ValueError, OSError) as error:
            self.problem = sentence(error)
            raise
        finally:
            self._reloading.release()
            self.reloads.labels("failed" if self.problem else "done").inc()

    def answer(self, question: Question) -> dict:
        """Raises ValueError for what cannot be."""
        wishes = question.wishes()
        if (question.history is None) == (question.histories is None):
            raise ValueError('Give either "history" or "histories".')
        if question.history is not None:
            return {"items": self.pipe({"history": question.history}, **wishes)}
        found = self.pipe([{"history": history} for history in question.histories], **wishes)
        return {"answers": [{"items": own} if isinstance(own, list) else own for own in found]}

    @contextmanager
    def queued(self):
        """Counts who is waiting. Raises OverflowError where too many are."""
        if self.waiting >= MOST_WAITING:
            raise OverflowError
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def health(self) -> dict:
        told = {"status": "ok", "items": len(self.pipe.catalogue), "loaded": self.loaded}
        return told | ({"reload_failed": self.problem} if self.problem else {})


class BoundedBody:
    """Reads a request's body before the service sees it, and no more of it than is allowed."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BYTES:
                told = f"The request is larger than {MOST_BYTES:,} bytes: ask for fewer at a time."
                return await JSONResponse({"error": told}, 413)(scope, receive, send)
        sent = False

        async def whole():
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return await self.app(scope, whole, send)


def make_app(service: Service) -> FastAPI:
    app = FastAPI(title="Recommendations", docs_url=None, redoc_url=None)
    app.add_middleware(BoundedBody)

    @app.middleware("http")
    async def count(request: Request, call_next):
        response = await call_next(request)
        route = request.scope.get("route")  # what no route takes is counted as one, however it is called
        service.requests.labels(route.path if route else "other", response.status_code).inc()
        return response

    @app.exception_handler(ValueError)
    @app.exception_handler(OSError)
    async def explain(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": sentence(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def explain_slip(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:3])
        return JSONResponse({"error": f"{place or 'The request'}: {first['msg']}."}, 422)

    @app.exception_handler(HTTPException)
    async def say_no(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(OverflowError)
    async def send_away(request: Request, error: OverflowError) -> JSONResponse:
        told = f"{MOST_WAITING} requests are waiting already: ask again in a moment."
        return JSONResponse({"error": told}, 503, {"Retry-After": "1"})

    @app.post("/recommend")
    async def recommend(question: Question) -> JSONResponse:
        with service.queued(), service.seconds.time():
            answer = await anyio.to_thread.run_sync(service.answer, question, limiter=service.limiter)
        return JSONResponse(answer)

    @app.post("/reload")
    async def reload() -> dict:
        await asyncio.to_thread(service.reload)
        return service.health()

    @app.get("/health")
    async def health() -> dict:
        return service.health()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def sentence(error: Exception) -> str:
    return " ".join(str(error).split())


def reload_on_hangup(service: Service) -> None:
    """`kill -HUP` reads the catalogue again; a failure is told, and the old one goes on."""

    def work() -> None:
        try:
            service.reload()
        except (ValueError, OSError) as error:
            print(f"serve: {sentence(error)}", file=sys.stderr, flush=True)

    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=work, daemon=True).start())


@command(PARSER)
def main(options: Namespace) -> None:
    cores = os.cpu_count() or 1
    at_once = cores if options.at_once is None else options.at_once
    if at_once < 1:
        raise ValueError(f"--at_once {at_once}: at least one answer at a time is needed.")
    torch.set_num_threads(max(1, cores // at_once))
    settings = {name: getattr(options, name) for name in ("index", "device") if getattr(options, name)}
    service = Service(open_pipeline(options.model, **settings), options.catalogue, at_once)
    reload_on_hangup(service)
    print(f"serve: {len(service.pipe.catalogue):,} items on http://{options.host}:{options.port}", flush=True)
    uvicorn.run(make_app(service), host=options.host, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
