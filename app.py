"""python app.py [--workspace DIR] [--host H] [--port N]: the web app."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from data.errors import BadInput, UserError
from data.importing import read_records
from data.store import Store

SAMPLES = Path(__file__).parent / "data" / "samples"
SAMPLE_PROJECTS = {"handwritten.jsonl": "samples", "generated.jsonl": "samples-generated"}
SAMPLE_GUIDELINES = """\
Rank the responses from best to worst, as you would want them answered yourself.

1. **Right** before everything else: a false statement goes below a true one, however well it is written.
2. **Helpful**: it answers what was asked, in the language it was asked in.
3. **Clear**: among equals, the shorter and better ordered one.

- Tie responses you cannot tell apart (`=`).
- Set the *acceptable bar* (`b`) where you would no longer send the response to a person.
- Skip (`s`) what you cannot judge; flag (`f`) what should not be here.
"""
LOOPBACK = ("127.0.0.1", "localhost")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C. 0 done, 2 the user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        _check_host(options.host)
        with _only_server_of(options.workspace), _listening(options.host, options.port) as listener:
            _serve(options.workspace, listener)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    return 0


def load_samples(store: Store, folder: Path = SAMPLES) -> None:
    """Put each sample file into a project of its own, in a store that has no project yet."""
    if store.projects():
        return
    for file_name, name in SAMPLE_PROJECTS.items():
        store.create_project_with(name, list(read_records(folder / file_name)), guidelines=SAMPLE_GUIDELINES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python app.py", description="Serve the Rankwise pages.")
    parser.add_argument("--workspace", type=Path, default=Path("var"), help="folder of all state (default: var)")
    parser.add_argument("--host", default=LOOPBACK[0], help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on, 0 for any free one (default: 7860)")
    return parser


def _check_host(host: str) -> None:
    if host not in LOOPBACK:
        raise BadInput(
            f"--host {host}: without accounts the pages are served to this computer only. "
            "Use 127.0.0.1, or an SSH tunnel to it; accounts come in a later release."
        )


@contextmanager
def _only_server_of(workspace: Path) -> Iterator[None]:
    """Hold the workspace. The operating system drops the lock with the process, so kill -9 leaves none behind."""
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--workspace {workspace}: {error.strerror}. Choose another folder.") from error
    holder = workspace / "server.pid"
    lock = filelock.FileLock(workspace / "server.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise BadInput(
            f"--workspace {workspace}: another server (process {pid}) is using it. "
            "Stop that one or choose another workspace."
        ) from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound before anything slow happens, so that a taken port is known at once."""
    if not 0 <= port <= 65535:
        raise BadInput(f"--port {port}: a port is a number from 0 to 65535. Choose another one.")
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind((host, port))
            listener.listen()  # a browser that is early waits instead of failing
        except OSError as error:
            raise BadInput(f"--port {port}: {error.strerror}. Choose another one with --port.") from error
        yield listener
    finally:
        listener.close()


def _serve(workspace: Path, listener: socket.socket) -> None:
    """Open the store, build the pages, answer requests until a signal comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop is a Ctrl-C
    os.environ.setdefault("GRADIO_TEMP_DIR", str((workspace / "tmp").resolve()))
    import uvicorn

    from annotate.pages import build_app  # after the settings that Gradio reads at import

    store = Store.open(workspace, url=os.environ.get("DATABASE_URL"))
    try:
        load_samples(store)
        app = build_app(store, workspace)
        host, port = listener.getsockname()
        print(f"Rankwise is at http://{host}:{port} (Ctrl-C stops it)", flush=True)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        store.close()


if __name__ == "__main__":
    sys.exit(main())
