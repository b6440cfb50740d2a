"""The explorer's server: addresses, errors as pages, and how it begins and stops."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from typing import Any, cast

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from chexgenbench import __version__
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.home import Home
from chexgenbench.report.board import number
from chexgenbench.store.cookbook import saved_queries
from chexgenbench.view import pages
from chexgenbench.view.guard import Guard, new_root
from chexgenbench.view.live import Progress
from chexgenbench.view.pages import NotFound
from chexgenbench.view.pictures import EDGES, NoPicture, Pictures
from chexgenbench.view.reader import Reader, Session
from chexgenbench.view.source import NoStore, Source
from chexgenbench.view.sql_box import CSV_ROWS, ROWS, SqlBox, schema

_HOST = "127.0.0.1"
_BODY = 200_000
"""Bytes of a POST."""

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Explorer:
    """Everything that a request needs.

    Args:
        include_credentialed: show prompts and images of credentialed splits too.
        seconds: after which a question in the SQL box is ended.
        root: the folder that all addresses are in, see `Guard`.
    """

    def __init__(
        self,
        home: Home,
        *,
        include_credentialed: bool = False,
        seconds: float = 30.0,
        root: str = "",
    ) -> None:
        self.source = Source(home, include_credentialed=include_credentialed)
        self._reader = Reader(self.source)
        self._pictures = Pictures(home)
        self._progress = Progress(home)
        self._home, self._seconds = home, seconds
        # A reader of its own: a question that takes all its memory leaves the pages theirs.
        self.box = SqlBox(Reader(self.source, plain=True), seconds=seconds)
        self._static = {
            each.name: each.read_bytes()
            for each in files("chexgenbench.view").joinpath("static").iterdir()
        }
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("chexgenbench.view"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

        def address(path: str, *parts: str, **query: object) -> str:
            return root + pages.address(path, *parts, **query)

        self._templates.filters |= {"number": number, "duration": pages.duration}
        self._templates.globals |= {"version": __version__, "address": address}

    def app(self) -> Starlette:
        """The ASGI application, without its guard."""
        get = {
            "/": self._runs,
            "/runs/{run}": self._run,
            "/runs/{run}/images": self._gallery,
            "/runs/{run}/image": self._image,
            "/runs/{run}/pairs": self._pairs,
            "/compare": self._compare,
            "/sql": self._sql,
            "/schema.json": self._schema,
            "/live": self._live,
            "/live.json": self._live_json,
            "/picture/generated": self._generated,
            "/picture/real": self._real,
            "/picture/pair": self._pair,
            "/static/{name}": self._file,
        }
        routes = [Route(path, handler, methods=["GET"]) for path, handler in get.items()]
        routes += [
            Route("/sql", self._answer, methods=["POST"]),
            Route("/sql.csv", self._csv, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: self._http_error,
            UserError: self._user_error,
            Exception: self._fault,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False  # it would lead out of the folder
        return app

    # Pages: each opens the newest store for itself.

    def _page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        template = self._templates.get_template(f"{name}.html.j2")
        values = {"home": str(self._home.root), "here": name, "hidden": False} | values
        return HTMLResponse(template.render(values), status)

    def _runs(self, request: Request) -> Response:
        work = [each for each in self._progress.look() if each.alive]
        try:
            with self._reader.session() as session:
                found = pages.runs(session, request.query_params)
                return self._page("runs", found=found, work=work, store=session.version)
        except NoStore as error:
            return self._page("empty", error=error, work=work, store="")

    def _run(self, request: Request) -> Response:
        with self._reader.session() as session:
            found = pages.run(session, request.path_params["run"], request.query_params)
            return self._page("run", found=found, hidden=found.hidden)

    def _gallery(self, request: Request) -> Response:
        with self._reader.session() as session:
            found = pages.gallery(session, request.path_params["run"], request.query_params)
            return self._page("gallery", found=found, hidden=found.hidden)

    def _image(self, request: Request) -> Response:
        with self._reader.session() as session:
            found = pages.image(session, request.path_params["run"], request.query_params)
            return self._page("image", found=found, hidden=found.hidden)

    def _pairs(self, request: Request) -> Response:
        with self._reader.session() as session:
            found = pages.pairs(session, request.path_params["run"], request.query_params)
            return self._page("pairs", found=found, hidden=found.hidden)

    def _compare(self, request: Request) -> Response:
        with self._reader.session() as session:
            found = pages.compare(session, request.query_params)
            return self._page("compare", found=found, hidden=found.hidden)

    def _live(self, _request: Request) -> Response:
        return self._page("live", work=self._progress.look(), store=self._version())

    def _live_json(self, _request: Request) -> Response:
        work = self._progress.look()
        template = self._templates.get_template("_work.html.j2")
        alive = [each for each in work if each.alive]
        return JSONResponse(
            {
                "work": [each.plain() for each in work],
                "store": self._version(),
                "html": template.render(work=work),
                "alive": template.render(work=alive) if alive else "",
            }
        )

    def _version(self) -> str:
        try:
            with self._reader.session() as session:
                return session.version
        except UserError:
            return ""

    # The SQL box.

    def _sql(self, request: Request) -> Response:
        saved = saved_queries()
        name = request.query_params.get("saved")
        if name is not None and name not in saved:
            raise NotFound("There is no saved question of that name.")
        with self._reader.session() as session:
            return self._page(
                "sql",
                saved=list(saved.values()),
                chosen=saved[name] if name else None,
                hidden=bool(session.hidden),
                seconds=self._seconds,
                rows=ROWS,
                csv_rows=CSV_ROWS,
            )

    def _schema(self, _request: Request) -> Response:
        with self._reader.session() as session:
            return JSONResponse(session.once("schema", lambda: schema(session)))

    async def _answer(self, request: Request) -> Response:
        try:
            sql = await _statement(request)
            answer = await self.box.table(sql, request.is_disconnected)
        except UserError as error:
            shown = self._templates.get_template("_answer.html.j2").render(error=error)
            return HTMLResponse(shown, 400)
        shown = self._templates.get_template("_answer.html.j2").render(
            error=None, answer=answer, most=ROWS
        )
        return HTMLResponse(shown)

    async def _csv(self, request: Request) -> Response:
        try:
            text = await self.box.csv(await _statement(request), request.is_disconnected)
        except UserError as error:
            shown = self._templates.get_template("_answer.html.j2").render(error=error)
            return HTMLResponse(shown, 400)
        return Response(
            text,
            media_type="text/csv",
            headers={"content-disposition": 'attachment; filename="answer.csv"'},
        )

    # Files.

    def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise NotFound("There is no such file.")
        kind = _KINDS["." + name.rpartition(".")[2]]
        return Response(self._static[name], media_type=kind)

    def _generated(self, request: Request) -> Response:
        given = request.query_params

        def find(session: Session) -> Any:
            run, prompt = pages.text(given, "run"), pages.text(given, "prompt")
            return self._pictures.generated(session, run, prompt, pages.count(given, "repeat"))

        return self._picture(request, find)

    def _real(self, request: Request) -> Response:
        given = request.query_params
        return self._picture(
            request,
            lambda session: self._pictures.real(
                session, pages.text(given, "run"), pages.text(given, "prompt")
            ),
        )

    def _pair(self, request: Request) -> Response:
        given = request.query_params

        def find(session: Session) -> Any:
            return self._pictures.pair(
                session,
                pages.text(given, "run"),
                pages.text(given, "plugin"),
                given.get("encoder", ""),
                pages.text(given, "kind"),
                pages.count(given, "rank"),
                "other" if given.get("side") == "other" else "image",
            )

        return self._picture(request, find)

    def _picture(self, request: Request, find: Callable[[Session], Any]) -> Response:
        edge = pages.count(request.query_params, "edge", EDGES[0])
        if edge not in EDGES:
            raise UserError(f"An image's edge is one of {', '.join(map(str, EDGES))}.")
        with self._reader.session() as session:
            path = find(session)
        return Response(self._pictures.webp(path, edge), media_type="image/webp")

    # What went wrong.

    def _http_error(self, _request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = "There is no such page." if status == 404 else "The explorer is read-only."
        return self._page("error", status, error=UserError(said))

    def _user_error(self, _request: Request, error: Exception) -> Response:
        missing = isinstance(error, NotFound | NoPicture | NoStore)
        return self._page("error", 404 if missing else 400, error=error)

    def _fault(self, _request: Request, _error: Exception) -> Response:
        said = "This page failed by a fault of chexgenbench; the terminal shows where."
        return self._page("error", 500, error=ChexGenBenchError(said))


async def _statement(request: Request) -> str:
    """The statement of a POST, which is JSON: no form of another page can send that."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise UserError("A question comes as JSON.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY:
            raise UserError(f"A question has at most {_BODY:,} bytes.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError("A question comes as JSON.") from error
    sql = value.get("sql") if isinstance(value, dict) else None
    if not isinstance(sql, str) or not sql.strip():
        raise UserError("There is no question.")
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise UserError("The question holds half a character (a lone surrogate).") from error
    return sql


class _Server(uvicorn.Server):
    """Stops at the first Ctrl-C: open requests are ended, and questions interrupted."""

    def __init__(self, config: uvicorn.Config, box: SqlBox) -> None:
        super().__init__(config)
        self._box = box

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._box.end_all()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but Ctrl-C is how the explorer ends, and is not raised again."""
        wanted = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            wanted.append(signal.SIGINT)
        kept = {each: signal.signal(each, self.handle_exit) for each in wanted}
        try:
            yield
        finally:
            for each, handler in kept.items():
                signal.signal(each, handler)


def serve(
    home: Home,
    *,
    port: int = 0,
    include_credentialed: bool = False,
    query_seconds: float = 30.0,
    ready: Callable[[Guard], None],
) -> bool:
    """Serves the explorer on 127.0.0.1 until Ctrl-C.

    Args:
        port: 0 takes a free one.
        include_credentialed, query_seconds: see `Explorer`.
        ready: is called with the guard, which knows the address, once the port is taken.

    Returns:
        Whether all work has ended. If not, a thread is in a question that DuckDB does not
        interrupt, and the process should be ended without its clean-up, which would wait for it.

    Raises:
        UserError: the port is taken or not allowed.
    """
    root = new_root()
    explorer = Explorer(
        home, include_credentialed=include_credentialed, seconds=query_seconds, root=root
    )
    with _listen(port) as listener, closing(explorer.source):
        guard = Guard(cast("Any", explorer.app()), listener.getsockname()[1], root)
        config = uvicorn.Config(
            cast("Any", guard),
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=5,
            limit_concurrency=200,
        )
        ready(guard)
        asyncio.run(_Server(config, explorer.box).serve(sockets=[listener]))
    return not explorer.box.at_work


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
        listener.listen()  # who is told the address may ask at once
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is taken" if taken else "cannot be used"
        raise UserError(f"Port {port} {why}.", hint="--port 0 takes a free one.") from error
    return listener
