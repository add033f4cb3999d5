#!/usr/bin/env python3
"""Goes on from a prompt with an exported model in Hugging Face's transformers, greedily: what
`iota-orchestrator generate --temperature 0` prints for the same model should be the same text.

    pip install torch transformers
    iota-orchestrator export --to model
    python crates/iota-trained/check_export.py model "To be, or " --expect "$(iota-orchestrator generate \\
        --prompt "To be, or " --tokens 100 --temperature 0)"

For models without bottlenecks between their blocks, whose tokens are bytes. Exit code 1 if the texts differ.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM

arguments = argparse.ArgumentParser()
arguments.add_argument("folder")
arguments.add_argument("prompt")
arguments.add_argument("--tokens", type=int, default=100)
arguments.add_argument("--expect")
given = arguments.parse_args()

model = AutoModelForCausalLM.from_pretrained(given.folder).eval()
prompt = torch.tensor([list(given.prompt.encode())])
with torch.inference_mode():
    written = model.generate(prompt, max_new_tokens=given.tokens, do_sample=False, pad_token_id=0)
text = bytes(written[0].tolist()).decode(errors="replace")
print(text)
if given.expect is not None and text.rstrip() != given.expect.rstrip():
    raise SystemExit(f"expected:\n{given.expect}")
