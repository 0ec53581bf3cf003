"""Options that commands share."""

from __future__ import annotations

import click

MODEL = "Folder of an artifact or of transformers, or OWNER/NAME of the Hugging Face hub."
model_option = click.option("--model", default="default", show_default=True, help=MODEL)
layer_option = click.option(
    "--layer", default=-1, show_default=True, help="0 (what enters the first block) to N."
)
pool_option = click.option(
    "--pool",
    type=click.Choice(["mean", "max", "none"]),
    default="mean",
    show_default=True,
    help="One vector a clip, or (none) all of its frames.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a file.")
head_option = click.option("--head", help="Which head to ask, where the model has several.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    show_default=True,
)
files_argument = click.argument("files", nargs=-1, required=True, metavar="FILE...")
top_k_option = click.option(
    "--top-k", type=int, help="Tell only so many labels.  [default: 1; with --json all]"
)
threshold_option = click.option(
    "--threshold", default=0.5, show_default=True, help="Probability from which an event is told."
)
