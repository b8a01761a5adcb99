"""Refining and what comes of it: ``refine``, ``versions``, ``versions rollback``, ``status``."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from streamsplit.cli.options import ConfigOption
from streamsplit.cli.terminal import app, err, out
from streamsplit.errors import ConfigError

if TYPE_CHECKING:
    from streamsplit.config import ServerSettings
    from streamsplit.server.publications import Publications

versions_app = typer.Typer(help="The versions that were published, and the way back.")
app.add_typer(versions_app, name="versions", invoke_without_command=True)

StateOption = Annotated[Path | None, typer.Option("--state-dir", help="the refiner's state folder")]


@app.command()
def refine(
    config: ConfigOption = None,
    state_dir: StateOption = None,
    compute: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    settings_json: Annotated[str | None, typer.Option(hidden=True)] = None,
    stop_with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Refine the server's encoder from what devices send, in rounds; publish what is better, refuse what is not.

    `streamsplit server --refine` runs this by itself. Run it by hand to use another machine's accelerator on a shared folder, or to
    watch it. It goes on where it was, whatever ended it. Several processes refine as one, each on a GPU of its own with `--compute cuda`:
    `torchrun --nproc-per-node 2 -m streamsplit refine`.
    """
    from streamsplit.server import refiner
    from streamsplit.server.refining_ranks import leads

    settings = _settings(config, state_dir, {"compute": compute}, settings_json)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if stop_with_parent:
        threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    if leads() and not settings_json:
        err.print(f"refining in {settings.refiner.state_dir}; stop with Ctrl-C", soft_wrap=True)
    refiner.run(settings, stop.is_set)


@versions_app.callback()
def versions(
    context: typer.Context,
    config: ConfigOption = None,
    state_dir: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """List the published versions; `streamsplit versions rollback` publishes the one before the newest again."""
    context.obj = (config, state_dir)
    if context.invoked_subcommand:
        return
    current = _publications(config, state_dir).current()
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(current) if current else None))
    elif current is None:
        out.print("no version has been published yet")
    else:
        table = Table()
        for heading in ("number", "version", "published", "by", "difference", "served as"):
            table.add_column(heading, no_wrap=heading not in ("version", "by"), overflow="fold")
        for place, one in enumerate(current.history):
            latest = all(later.id != one.id for later in current.history[place + 1 :])
            served = {current.newest: "N", current.previous: "N-1"}.get(one.id, "") if latest else ""
            size = f"{one.difference_bytes / 1e6:.2f} MB" if one.difference_bytes else ""
            table.add_row(str(one.number), one.id, _when(one.at_unix_ms), one.by, size, served)
        out.print(table)


@versions_app.command()
def rollback(context: typer.Context) -> None:
    """Publish the version before the newest again; a running server takes it up within seconds, the refiner starts from it."""
    current = _publications(*context.obj).rollback(int(time.time() * 1000))
    out.print(f"{current.newest} is served again, {current.previous} as the one before", soft_wrap=True)


@app.command()
def status(
    config: ConfigOption = None,
    store: Annotated[Path | None, typer.Option(help="the server's SQLite file")] = None,
    state_dir: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Say what the server has stored, what the refiner is doing and which versions are served, from their files alone."""
    from streamsplit.server.overview import overview

    settings = _settings(config, state_dir, {})
    seen = overview(store or settings.store, settings.refiner.state_dir)
    if as_json:
        typer.echo(json.dumps(seen))
        return
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in seen.items():
        table.add_row(name.replace("_", " "), _said(name, value))
    out.print(table)


def _settings(
    config: Path | None,
    state_dir: Path | None,
    options: dict[str, Any],
    settings_json: str | None = None,
) -> ServerSettings:
    from streamsplit.config import ServerSettings, load

    if settings_json is not None:
        try:
            return load(ServerSettings, None, json.loads(settings_json))
        except json.JSONDecodeError as error:
            raise ConfigError(f"--settings-json: expected JSON, got other text: {error}") from None
    settings = load(ServerSettings, config)
    changes = {key: value for key, value in {"state_dir": state_dir, **options}.items() if value is not None}
    return settings.model_copy(update={"refiner": settings.refiner.model_copy(update=changes)})


def _publications(config: Path | None, state_dir: Path | None) -> Publications:
    from streamsplit.server.publications import Publications
    from streamsplit.server.refiner import PUBLISHED

    return Publications(_settings(config, state_dir, {}).refiner.state_dir / PUBLISHED)


def _wait_for_end(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):  # a buffered read would hold its lock at exit
        pass
    stop.set()


def _when(at_unix_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_unix_ms / 1000))


def _said(name: str, value: Any) -> str:
    if value is None or value in ("", []):
        return "-"
    if name.endswith("_unix_ms"):
        return _when(int(value))
    if name.endswith("_bytes"):
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return str(value)
