"""`glmc run`: generate text from one prompt, streamed as it comes; for pictures see glmc/cli/draw.py."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import glmc
from glmc import knobs
from glmc.cli import arguments, draw, show
from glmc.runtime.supervise import Supervised

if TYPE_CHECKING:
    from glmc.runtime.generate import Generation

Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What to ask.", show_default=False)]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Stop after this many tokens.")]
Temperature = Annotated[float | None, typer.Option(
    "--temperature", metavar="F", show_default=False,
    help="0 takes the likeliest token, which is the default unless --top-p or --top-k is given; then it is 1.")]
TopP = Annotated[float, typer.Option("--top-p", metavar="F", help="Sample from the likeliest tokens of this mass.")]
TopK = Annotated[int, typer.Option("--top-k", metavar="N", help="Sample from this many likeliest tokens; 0 is all.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", metavar="F", help="Above 1 discourages repetition.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.", show_default=False)]
Raw = Annotated[bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.")]


Image = Annotated[list[Path] | None, typer.Option("--image", metavar="F", show_default=False,
                                                  help="An image that the prompt is about; may be given again.")]
Video = Annotated[list[Path] | None, typer.Option("--video", metavar="F", show_default=False,
                                                  help="A video that the prompt is about; may be given again.")]
Fps = Annotated[float | None, typer.Option("--fps", metavar="F", show_default=False,
                                           help="Frames to take from a second of a video; the checkpoint's own if not given.")]
VideoMaxTokens = Annotated[int | None, typer.Option(
    "--video-max-tokens", metavar="N", show_default=False,
    help="Take fewer frames of a video that would become more tokens than this, instead of refusing it.")]


Ranks = Annotated[int, typer.Option("--ranks", metavar="N", help="Run in this many processes, which check each other.")]
Deadline = Annotated[float | None, typer.Option(
    "--deadline", metavar="S", show_default=False,
    help="The most seconds that one of several processes waits for another; GLMC_DEADLINE, or 60, if not given.")]


def run(ctx: typer.Context, out: arguments.Out, prompt: Prompt, max_new_tokens: MaxNewTokens = 64,
        temperature: Temperature = None, top_p: TopP = 1.0, top_k: TopK = 0, repetition_penalty: Penalty = 1.0,
        seed: Seed = None, raw: Raw = False, image: Image = None, video: Video = None, fps: Fps = None,
        video_max_tokens: VideoMaxTokens = None, size: draw.Size = None, output: draw.Output = None,
        steps: draw.Steps = 50, guidance: draw.Guidance = 1.5, cfg_parallel: draw.CfgParallel = False,
        ranks: Ranks = 1, deadline: Deadline = None, device: arguments.DeviceName = None, json: arguments.Json = False) -> None:
    """Generate text from one prompt, the likeliest token each time when no sampling flag is given; or a picture."""
    deadline = float(knobs.get("GLMC_DEADLINE")) if deadline is None else deadline
    if draw.draws(arguments.artifact(out), ctx):
        picture = {"prompt": prompt, "output": output, "size": size, "images": image or [], "steps": steps,
                   "guidance": guidance, "seed": seed, "cfg": cfg_parallel}
        return draw.draw(out, picture, ranks, deadline, device, json)
    if temperature is None:
        temperature = 1.0 if top_p != 1.0 or top_k else 0.0
    asked: dict[str, Any] = {
        "prompt": prompt, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "repetition_penalty": repetition_penalty, "seed": seed, "raw": raw, "images": image or (),
        "videos": video or (), "fps": fps, "video_max_tokens": video_max_tokens}
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the text alone
        if ranks == 1:
            model: Any = glmc.load(out, device=device)
            pieces: Any = model.generate(**asked, stream=True)
        else:
            pieces = Supervised(out, _told(asked), ranks, deadline, device)
    escape = sys.stdout.isatty()
    for piece in pieces:
        if not json and piece:
            sys.stdout.write(show.terminal_safe(piece) if escape else piece)
            sys.stdout.flush()
    answer: Generation = pieces.result
    if json:
        show.data({"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason,
                   "timings": answer.timings, "prompt_tokens": answer.prompt_tokens, "seed": answer.seed,
                   "notes": answer.notes})
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    for note in answer.notes:
        show.talk(f"note: {show.terminal_safe(note)}")
    show.talk(_summary(answer))


def _told(asked: dict[str, Any]) -> dict[str, Any]:
    """A request as other processes are told it."""
    return {**asked, "images": [*map(str, asked["images"])], "videos": [*map(str, asked["videos"])]}


def _summary(answer: Generation) -> str:
    """Tokens, tokens a second after the first, and the time to the first token."""
    count, decode = len(answer.token_ids), answer.timings["decode"]
    # A stop token costs a step as well, so that a stopped answer decodes as many steps as it has tokens.
    steps = count if answer.finish_reason == "stop" else count - 1
    rate = f", {steps / decode:.1f} tokens/s" if steps > 0 and decode > 0 else ""
    return (f"{answer.prompt_tokens} tokens in, {count} out ({answer.finish_reason}){rate}, "
            f"first token after {answer.timings['first_token']:.3f} s")
