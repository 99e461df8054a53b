"""`bimedix-edge ask`: one question, one answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from bimedix_edge.chat import Chat
from bimedix_edge.cli.language import language_of
from bimedix_edge.cli.opening import open_runtime
from bimedix_edge.cli.options import encoder_options, model_options, pack, placement_options, sampling_options
from bimedix_edge.cli.pictures import Selection, load_all, picture_options, picture_report, show_pictures
from bimedix_edge.cli.plan_report import plan_json, show_dry_run
from bimedix_edge.cli.schemas import read_schema, value_of
from bimedix_edge.cli.terminal import (
    AnswerPrinter,
    ProgressLine,
    cancel_on_interrupt,
    echo,
    plain_console,
    reorders,
    timing_line,
)
from bimedix_edge.errors import DeviceError, InputError
from bimedix_edge.events import Done, Event, Token
from bimedix_edge.imaging.picture import Picture
from bimedix_edge.prompt import check_text
from bimedix_edge.runtime import Runtime
from bimedix_edge.schema.grammar import grammar_for
from bimedix_edge.settings import load_settings

__all__ = ["ask"]

_MAX_STDIN_BYTES = 1 << 20
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class _Output:
    """The values of --schema, --json, --verbose and --dry-run."""

    schema: str | None
    as_json: bool
    verbose: bool
    dry_run: bool


@click.command()
@click.argument("question")
@click.option("-i", "--image", "images", multiple=True, type=click.Path(), metavar="FILE", help="Repeat for several.")
@picture_options
@model_options
@placement_options
@encoder_options
@sampling_options
@click.option("--schema", metavar="NAME|FILE", help="Answer in JSON: report, summary, vqa, or a schema in a file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--bidi", type=click.Choice(["auto", "on", "off"]), help="Reorder Arabic for this terminal.")
@click.option("-v", "--verbose", is_flag=True, help="Print timings to standard error.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the memory it takes; load nothing.")
@pack("output", _Output)
def ask(question: str, images: tuple[str, ...], selection: Selection, output: _Output, **flags: Any) -> int:
    """Answer QUESTION, which may be about images; `-` reads it from standard input.

    Notes and warnings are in the language of the question, English or Arabic.
    """
    settings = load_settings(flags)
    console = plain_console(stderr=True)
    text = check_text(_question(question))
    as_json = output.as_json
    if output.dry_run:
        show_dry_run(settings, console, as_json=as_json, language=language_of(text))
        return 0
    # before the model is loaded: a wrong file name should not cost the load
    pictures = load_all(images, selection)
    grammar = None if output.schema is None else grammar_for(read_schema(output.schema))
    as_text = not as_json and grammar is None
    if not as_json:
        # every step that changed a value is shown, even without --verbose
        shown = [picture for picture in pictures if output.verbose or picture.notes or picture.warnings]
        show_pictures(shown, settings, err=True, language=language_of(text))
    with (
        open_runtime(settings, console, quiet=as_json, language=language_of(text)) as runtime,
        runtime.chat() as chat,
    ):
        printer = AnswerPrinter(sys.stdout, reorder=reorders(settings, sys.stdout))
        try:
            with cancel_on_interrupt() as cancel:
                sampling = replace(chat.sampling, grammar=grammar)
                events = chat.ask(text, pictures, sampling=sampling, cancel=cancel)
                done = _listen(events, printer if as_text else None)
        except DeviceError:
            _show_interrupted(runtime, chat, printer if as_text else None, as_json=as_json)
            raise
        if as_text:
            printer.finish()
            echo(f"\n{runtime.manifest.notice}")
        else:
            report = _report(runtime, chat.sampling.seed, done, pictures) if as_json else {}
            _print_object(report, done, runtime.manifest.notice, held=grammar is not None)
        if output.verbose:
            echo(timing_line(done, runtime.load_ms), err=True)
    return _EXIT_INTERRUPTED if done.stop_reason == "cancelled" else 0


def _listen(events: Iterator[Event], printer: AnswerPrinter | None) -> Done:
    """Show an answer as it streams, and return its end."""
    progress = ProgressLine(sys.stderr)
    done: Done | None = None
    for event in events:
        progress.show(event)
        if isinstance(event, Token) and printer is not None:
            printer.write(event.text)
        elif isinstance(event, Done):
            done = event
    assert done is not None, "an answer always ends with Done"
    return done


def _show_interrupted(runtime: Runtime, chat: Chat, printer: AnswerPrinter | None, *, as_json: bool) -> None:
    """Show the part of an answer from before a device failed; the error follows."""
    if printer is not None:
        printer.finish()
        echo(f"(interrupted)\n\n{runtime.manifest.notice}")
    elif as_json:
        answer = chat.turns[-1].answer if chat.turns else ""
        report = {"answer": answer, "stop_reason": "interrupted", "notice": runtime.manifest.notice}
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))


def _print_object(report: dict[str, Any], done: Done, notice: str, *, held: bool) -> None:
    """Print the report of --json, the object of --schema, or both.

    Raises:
        InputError: The object is not complete. Then only the report is printed, without it.
    """
    failure: InputError | None = None
    if held:
        try:
            report["object"] = value_of(done)
        except InputError as error:
            failure = error
            report = report and {**report, "object": None}
    if report:
        click.echo(json.dumps({**report, "notice": notice}, ensure_ascii=False, indent=2))
    if failure is not None and done.stop_reason != "cancelled":
        raise failure


def _question(argument: str) -> str:
    if argument != "-":
        return argument
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise InputError(f"Standard input has more than {_MAX_STDIN_BYTES} bytes. Shorten the question.")
    # a damaged byte becomes a surrogate, which `check_text` reports by its position
    return data.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _report(runtime: Runtime, seed: int, done: Done, pictures: Sequence[Picture]) -> dict[str, Any]:
    times, usage = done.timings, done.usage
    return {
        "answer": done.text,
        "model": runtime.manifest.name,
        "stop_reason": done.stop_reason,
        "tokens": {"prompt": usage.prompt, "reused": usage.reused, "generated": usage.generated},
        "images": [
            {
                "sha256": image.sha256,
                "width_px": image.width_px,
                "height_px": image.height_px,
                "cached": image.cached,
                **picture_report(picture),
            }
            for image, picture in zip(done.images, pictures, strict=True)
        ],
        "timings_ms": {
            "load": round(runtime.load_ms, 3),
            "encode": round(times.encode, 3),
            "prefill": round(times.prefill, 3),
            "first_token": round(times.first_token, 3),
            "decode": round(times.decode, 3),
        },
        "seed": seed,
        "plan": plan_json(runtime.plan),
    }
