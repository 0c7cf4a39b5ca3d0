"""Compile the little GLM-OCR of this folder and ask it about a picture and a video that this script draws.

    python examples/see.py [--target cpu|fx] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from shapes import QUESTIONS, answer, clip, film, picture

import glmc

HERE = Path(__file__).parent
PICTURES = (("red", "circle"), ("blue", "triangle"), ("green", "square"))
CLIPS = (("yellow", "square", "blue"), ("red", "triangle", "green"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", help="cpu runs on glmc's own library; fx interprets")
    parser.add_argument("--keep", type=Path, help="leave the artefact and the drawings here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        glmc.compile(HERE / "tiny-glm-ocr", folder / "see.glmc", target=options.target, max_len=512)
        model = glmc.load(folder / "see.glmc")
        for colour, shape in PICTURES:
            file = folder / f"{colour}-{shape}.png"
            picture(colour, shape).save(file)
            made = model.generate(QUESTIONS["image"], images=[file], max_new_tokens=40)
            print(f"{file.name}: {made.text!r} (drawn: {answer(colour, shape)}; {made.prompt_tokens} tokens)")
        for colour, shape, then in CLIPS:
            file = film(clip(colour, shape, then), folder / f"{colour}-{shape}-{then}.mp4")
            made = model.generate(QUESTIONS["video"], videos=[file], max_new_tokens=40)
            print(f"{file.name}: {made.text!r} (drawn: {answer(colour, shape, then)}; {made.prompt_tokens} tokens)")
            for note in made.notes:
                print(f"  note: {note}")


if __name__ == "__main__":
    main()
