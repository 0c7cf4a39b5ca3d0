"""Use an artefact where a script expects a transformers model: `model.as_transformers()` with `generate()`.

    python examples/transformers_generate.py ARTEFACT
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoTokenizer

import glmc

HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path, help="made by `glmc compile examples/tiny-glm4-moe --max-batch 2 -o ...`")
    options = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "tiny-glm4-moe", padding_side="left")
    model = glmc.load(options.artifact).as_transformers()
    inputs = tokenizer(["And God said,", "Blessed is the man that walketh not in"], padding=True, return_tensors="pt")
    made = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=24,
                          do_sample=False)
    for text in tokenizer.batch_decode(made, skip_special_tokens=True):
        print(text)


if __name__ == "__main__":
    main()
