"""`avgen sample`, `python -m avgen.sample`, `accelerate launch -m avgen.sample`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avgen import command
from avgen.sample.config import SampleConfig

if TYPE_CHECKING:
    from avgen.data.media import MediaError
    from avgen.sample.inputs import Request

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
    from avgen.sample.folder import open_for
    from avgen.sample.jobs import jobs_of, left_out, requests_of, run

    console = Console()
    requests = requests_of(config)
    state = this_process()
    pipeline = open_for(state.device, config.model, config.attention)

    def leave_out(request: Request, error: MediaError) -> None:
        if state.is_main_process:
            console.print(left_out(request, error), highlight=False, markup=False, soft_wrap=True)

    jobs = jobs_of(config, pipeline, requests, None if config.prompts is None else leave_out)
    lost = len(requests) - len(jobs) + run(config, pipeline, jobs, console)
    if state.is_main_process:
        console.print(f"clips and manifest.jsonl are in [bold]{config.out}[/bold]")
        if lost:
            console.print(f"{lost} of {len(requests)} clips could not be made: mend their files and run it again")
    return command.INCOMPLETE if lost else 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
