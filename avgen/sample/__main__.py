"""`avgen sample`, `python -m avgen.sample`, `accelerate launch -m avgen.sample`."""

from __future__ import annotations

from avgen import command
from avgen.sample.config import SampleConfig

EXAMPLES = (
    'avgen sample model=runs/toybox task=t2av prompt="a large red ball bounces twice"',
    'avgen sample model=runs/toybox task=v2a video=in.mp4 prompt="a red ball bounces"',
    "avgen sample model=runs/toybox prompts=prompts.csv samples=4 out=runs/many",
    "accelerate launch -m avgen.sample model=runs/toybox prompts=prompts.txt",
)


def main(argv: list[str] | None = None) -> int:
    config = command.configure(SampleConfig, "sample", argv, "make clips with a trained model", EXAMPLES)
    # here, not above: a mistyped key must not wait for the models to be imported
    from rich.console import Console

    from avgen.ranks import this_process
    from avgen.sample.folder import open_pipeline
    from avgen.sample.jobs import jobs_of, requests_of, run

    console = Console()
    requests = requests_of(config)
    pipeline = open_pipeline(config.model).to(this_process().device)
    run(config, pipeline, jobs_of(config, pipeline, requests), console)
    console.print(f"clips and manifest.jsonl are in [bold]{config.out}[/bold]")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
