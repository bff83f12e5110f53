"""The choke points: every request passes `Gate`, every page event passes `GuardedBlocks`. Both deny by default.

Gradio runs any handler for anyone who posts its number, whatever its name or visibility, and reflects foreign origins;
so who may do what is decided here, and once more in the handlers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from annotate.people import People, allows

MAX_API_BODY_BYTES = 256 * 1024  # the longest comment is 10,000 characters, at most 12 bytes each in JSON
LOCAL_HOSTS = ("127.0.0.1", "localhost")

_SECURITY_HEADERS = {
    # Gradio's own scripts need 'unsafe-inline' and 'unsafe-eval'; the rest keeps foreign images, styles and frames out.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "frame-ancestors 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# What Gradio's pages ask for. Its other addresses (API description, deep links, run history, monitoring, server
# functions, proxy, …) write files or tell too much, and stay closed.
_OPEN_TO_SIGNED_IN = (
    *("/assets", "/static", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/api"),
    *("/gradio_api/queue", "/gradio_api/run", "/gradio_api/heartbeat", "/gradio_api/startup-events"),
    *("/gradio_api/theme.css", "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/app_id"),
)
_OPEN_TO_ADMINS = ("/config", "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/file=")


class GuardedBlocks(gr.Blocks):
    """Pages whose events run only for people with the page's role; an unknown page needs an admin."""

    def __init__(self, *, people: People, page_roles: Mapping[str, str], **options: Any) -> None:
        super().__init__(**options)
        self._people = people
        self._page_roles = page_roles

    async def process_api(  # type: ignore[override]  # what Gradio passes on is its own affair
        self, block_fn: Any, inputs: Any, state: Any = None, request: Any = None, **more: Any
    ) -> Any:
        """Every event ends here, by whatever address it came; a batch brings a list of requests."""
        handler = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        needed = self._page_roles.get(str(handler.page), "admin")
        for one in request if isinstance(request, list) else [request]:
            name = getattr(one, "username", None)
            if not (name and allows(self._people.highest_role(name), needed)):
                raise gr.Error("Your role does not allow this.", print_exception=False)
        return await super().process_api(block_fn, inputs, state, request, **more)


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further."""

    status: HTTPStatus
    sentence: str


class Gate:
    """ASGI middleware: refuses foreign hosts, foreign sites, strangers and closed addresses; adds security headers."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        people: People,
        page_roles: Mapping[str, str],
        hosts: Iterable[str] = LOCAL_HOSTS,
    ) -> None:
        self._app = app
        self._people = people
        self._page_roles = page_roles
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no page uses one
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_security_headers(send, private=_is_under(scope["path"], "/api"))
        refusal = self._refusal(scope)
        if refusal is None and _is_under(scope["path"], "/api"):
            body = await _body(receive, scope)
            if body is None:
                refusal = Refusal(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The request is longer than {MAX_API_BODY_BYTES // 1024} KB. Shorten the comment.",
                )
            else:
                receive = _replayed(body, receive)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _answer(refusal, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """The first rule a request breaks, or None."""
        headers = Headers(scope=scope)
        return (
            self._wrong_host(headers)
            or _cross_site(scope, headers)
            or _api_without_header(scope, headers)
            or self._not_allowed(scope)
        )

    def _wrong_host(self, headers: Headers) -> Refusal | None:
        """Another name that leads to this address is how a foreign page would read ours (DNS rebinding)."""
        if _host_name(headers.get("host", "")) in self._hosts:
            return None
        return Refusal(HTTPStatus.BAD_REQUEST, f"Open this page as http://{LOCAL_HOSTS[0]}, not by another name.")

    def _not_allowed(self, scope: Scope) -> Refusal | None:
        path = scope["path"].rstrip("/") or "/"
        needed = self._page_roles.get(path[1:])
        if needed is None and any(_is_under(path, prefix) for prefix in _OPEN_TO_ADMINS):
            needed = "admin"
        if needed is None and any(_is_under(path, prefix) for prefix in _OPEN_TO_SIGNED_IN):
            needed = "annotator"
        if needed is None:
            return Refusal(HTTPStatus.NOT_FOUND, "There is nothing here. Go back to the start page.")
        person = self._people.signed_in(HTTPConnection(scope))
        if person is None:
            return Refusal(HTTPStatus.UNAUTHORIZED, "Sign in first.")
        if not allows(self._people.highest_role(person.name), needed):
            return Refusal(HTTPStatus.FORBIDDEN, "Your role does not open this page.")
        return None


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix if prefix.endswith("=") else f"{prefix}/")


def _host_name(host: str) -> str:
    return host.rsplit(":", 1)[0].lower() if not host.endswith("]") else host.lower()


def _cross_site(scope: Scope, headers: Headers) -> Refusal | None:
    """A request that a page of another site sent, which browsers say in Origin and Sec-Fetch-Site."""
    is_page = scope["method"] in _SAFE_METHODS and not scope["path"].startswith(("/api/", "/gradio_api/"))
    if is_page:
        return None
    origin = headers.get("origin")
    same_origin = origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    if same_origin and headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none"):
        return None
    return Refusal(HTTPStatus.FORBIDDEN, "This request came from another site. Open the page itself and try again.")


def _api_without_header(scope: Scope, headers: Headers) -> Refusal | None:
    """A foreign form cannot set a header, so a POST that has ours was sent by our page or a person's script."""
    if scope["method"] in _SAFE_METHODS or not _is_under(scope["path"], "/api") or headers.get("x-rankwise") == "1":
        return None
    return Refusal(HTTPStatus.FORBIDDEN, "The header 'X-Rankwise: 1' is missing. Reload the page and try again.")


async def _body(receive: Receive, scope: Scope) -> bytes | None:
    """The whole body, or None as soon as it is too long."""
    announced = Headers(scope=scope).get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_API_BODY_BYTES:
        return None
    body = b""
    while True:
        message: Message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MAX_API_BODY_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that hands out a body that was read already, then what follows it."""
    unread = [body]

    async def replay() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await receive()

    return replay


def _with_security_headers(send: Send, *, private: bool) -> Send:
    """`private` answers are never kept by a browser or a proxy."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers[name] = value
            if private:
                headers["Cache-Control"] = "no-store"
        await send(message)

    return send_with_headers


async def _answer(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"detail": refusal.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(refusal.status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
