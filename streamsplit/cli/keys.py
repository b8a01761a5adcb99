"""Keys: ``streamsplit keys ca | server | device | token``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamsplit.cli.terminal import keys_app, out


@keys_app.command("ca")
def keys_ca(folder: Annotated[Path, typer.Argument(help="where to put ca.pem and ca.key")]) -> None:
    """Make an authority. Keep its key off every device."""
    from streamsplit.server import keys

    _print_paths(keys.make_ca(folder))


@keys_app.command("server")
def keys_server(
    folder: Annotated[Path, typer.Argument(help="the authority's folder")],
    names: Annotated[list[str], typer.Argument(help="host names and addresses devices will use")],
) -> None:
    """Make a server's certificate, signed by the authority in the folder."""
    from streamsplit.server import keys

    _print_paths(keys.make_server_key(folder, names))


@keys_app.command("device")
def keys_device(
    folder: Annotated[Path, typer.Argument(help="the authority's folder")],
    device: Annotated[str, typer.Argument(help="the device's name")],
) -> None:
    """Make a device's certificate for mutual TLS, signed by the authority in the folder."""
    from streamsplit.server import keys

    _print_paths(keys.make_device_key(folder, device))


@keys_app.command("token")
def keys_token(
    devices: Annotated[Path, typer.Argument(help="the server's JSON of devices; it keeps only a hash")],
    device: Annotated[str, typer.Argument(help="the device's name")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="write the token here; default: DEVICE.token")
    ] = None,
) -> None:
    """Make a device's token: copy the token file to the device, the server keeps a hash of it."""
    from streamsplit.server import keys

    _print_paths(keys.make_token(devices, device, out_file or Path(f"{device}.token")))


@keys_app.command("remove")
def keys_remove(
    devices: Annotated[Path, typer.Argument(help="the server's JSON of devices")],
    device: Annotated[str, typer.Argument(help="the device's name")],
) -> None:
    """Take a device off the list, lost or stolen: token and certificate are refused from the server's next start on."""
    from streamsplit.server import keys

    keys.remove_device(devices, device)
    out.print(f"{device} is not on the list {devices} any more; restart the server", soft_wrap=True)


def _print_paths(paths: Any) -> None:
    for path in paths:
        out.print(f"wrote {path}", soft_wrap=True)
