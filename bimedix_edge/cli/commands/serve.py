"""`bimedix-edge serve`: an OpenAI-compatible server and a web page on this machine."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click

from bimedix_edge.cli.options import encoder_options, model_options, sampling_options
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.server.start import Address, ServerOptions, run_server
from bimedix_edge.settings import Settings, load_settings
from bimedix_edge.store import Store

__all__ = ["serve"]

_EXIT_INTERRUPTED = 130


@click.command()
@model_options
@encoder_options
@sampling_options
@click.option("--parallel", type=int, metavar="N", help="Most answers that are decoded in one batch.  [default: 8]")
@click.option(
    "--queue", type=int, metavar="N", help="Most requests that wait; further ones are refused.  [default: 64]"
)
@click.option("--host", default="127.0.0.1", help="Address to listen at; other machines need TLS and keys.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="A name in users' URLs; repeat for several.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="PEM", help="Certificate, with its chain.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="PEM", help="Key of the certificate.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with one key a line, one for each user; without it, each start makes a key.",
)
@click.option("--access-log", is_flag=True, help="Log method, route, status and time of each request.")
def serve(host: str, port: int, names: tuple[str, ...], access_log: bool, **options: Any) -> int:
    """Serve the model to OpenAI clients and as a web page, on this machine unless --host says otherwise."""
    files = [options.pop(name) for name in ("tls_cert", "tls_key", "api_key_file")]
    settings = load_settings(options)
    address = Address(host, port, names, *files)
    address.check()
    store = Store(settings.store_dir, settings.cache_dir)
    directory = store.find(settings.model) if settings.model else store.default()
    if store.is_demo(directory):
        click.echo("This is the demo model, which knows no medicine.", err=True)
        if not directory.is_dir():
            # in a process of its own, since the server's parent holds no engine
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                pool.submit(_convert_demo, settings).result()
    interrupted = asyncio.run(run_server(settings, directory, ServerOptions(address, access_log), _announce))
    return _EXIT_INTERRUPTED if interrupted else 0


def _convert_demo(settings: Settings) -> None:
    from bimedix_edge.cli.commands.convert import convert_demo

    console = plain_console(stderr=True)
    console.print("Converting it, once …", style="yellow")
    convert_demo(Store(settings.store_dir, settings.cache_dir), console)


def _announce(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()
