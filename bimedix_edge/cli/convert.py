"""`bimedix-edge convert`: a published checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bimedix_edge.bundle import Manifest
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.converters.convert import convert as convert_checkpoint
from bimedix_edge.converters.quantize import FILE_TYPES
from bimedix_edge.errors import UsageError
from bimedix_edge.settings import load_settings
from bimedix_edge.store import DEMO, DEMO_TYPE, Store, demo_checkpoint

__all__ = ["convert", "convert_demo"]


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--demo", is_flag=True, help="Convert the embedded demo checkpoint.")
@click.option(
    "-t",
    "--type",
    "file_type",
    default="Q4_K_M",
    show_default=True,
    metavar="TYPE",
    help=f"Of the decoder: {', '.join(FILE_TYPES)}.",
)
@click.option("-n", "--name", metavar="NAME", help="Install as NAME:TYPE.  [default: the checkpoint directory's name]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write here, not to the store.")
@click.option("--bos", type=click.IntRange(1, 2), help="How many <|begin_of_text|> a prompt starts with.")
@click.option("--aspect", type=click.Choice(["pad", "crop"]), help="How a picture becomes square.  [default: pad]")
@click.option("--vision-tower", type=click.Path(path_type=Path), metavar="DIR", help="CLIP, if it is not inside.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def convert(
    checkpoint: Path | None,
    demo: bool,
    file_type: str,
    name: str | None,
    output: Path | None,
    bos: int | None,
    aspect: str | None,
    vision_tower: Path | None,
    force: bool,
) -> None:
    """Turn CHECKPOINT, a directory as published, into a bundle that ask and chat can use."""
    if (checkpoint is None) != demo:
        raise UsageError("Expected a checkpoint directory or --demo, one of the two; see bimedix-edge convert --help.")
    if file_type.upper() not in FILE_TYPES:
        raise UsageError(f"Expected a type out of {', '.join(FILE_TYPES)}, but it is {file_type!r}; choose one.")
    if output is not None and name is not None:
        raise UsageError("Expected --name or --output, but both are given; an output directory needs no name.")
    source = demo_checkpoint() if checkpoint is None else checkpoint
    settings = load_settings()
    store = Store(settings.store_dir, settings.cache_dir)
    label = f"{name or _default_name(source, demo=demo)}:{file_type.lower()}"
    target = output or store.target(label)
    console = plain_console(stderr=True)
    with _Bars(console) as bars:
        manifest = convert_checkpoint(
            source,
            target,
            file_type=file_type.upper(),
            name=label,
            bos=bos,
            aspect=cast("Literal['pad', 'crop'] | None", aspect),
            vision_tower=vision_tower,
            replace=force,
            progress=bars.show,
        )
    _report(manifest, target)


def convert_demo(store: Store, console: Console, *, quiet: bool = False) -> None:
    """Convert the embedded demo checkpoint into the cache; another process doing the same is no error."""
    target = store.demo_directory()
    with _Bars(console if not quiet else None) as bars:
        if not quiet:
            console.print("Converting it, once …", style="yellow")
        convert_checkpoint(
            demo_checkpoint(), target, file_type=DEMO_TYPE, name=f"{DEMO}:{DEMO_TYPE.lower()}", progress=bars.show
        )


def _default_name(source: Path, *, demo: bool) -> str:
    return DEMO if demo else source.resolve().name.lower()


def _report(manifest: Manifest, target: Path) -> None:
    for role, entry in sorted(manifest.files.items()):
        click.echo(f"{role:8} {entry.path}  {entry.size_bytes / 1e6:.1f} MB  sha256 {entry.sha256}")
    click.echo(f"{manifest.name} is in {target}")
    click.echo(f"\n{manifest.licence} · {manifest.notice}")


class _Bars:
    """One bar a stage of the conversion; none without a console."""

    def __init__(self, console: Console | None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self._progress = Progress(*columns, console=console, disable=console is None, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def show(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a stage are complete."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
