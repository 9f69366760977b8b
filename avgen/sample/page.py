"""The page of `avgen app`, in gradio: what to make on one side, what came out on the other."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from avgen.command import users_error
from avgen.sample.app import AppConfig
from avgen.sample.config import SampleConfig
from avgen.sample.inputs import FILE_KINDS, FILES, Edit
from avgen.sample.studio import Shown, Studio

TASKS = {
    "t2av": "Text to picture and sound",
    "i2av": "Image to picture and sound",
    "v2a": "Video to sound",
    "a2v": "Sound to picture",
    "ai2v": "Image and sound to picture",
    "t2v": "Text to picture",
    "i2v": "Image to picture",
    "t2a": "Text to sound",
    "extend": "Extend a clip",
    "interpolate": "Fill in between a video's first and last frame",
    "inpaint": "Make part of a clip anew",
}
WANTED = {"image": "an image", "video": "a video", "audio": "a sound"}
# what the command line's words in a message are called on the page
CALLED = {"duration_s": "Duration", "edit.hole_s": "the part to make anew"} | {f"task={t}": s for t, s in TASKS.items()}
# small pictures are shown as the pixels they are
CSS = """
#clip video { image-rendering: pixelated; }
#sheet img { width: 100%; }
footer { display: none !important; }
"""


def serve(studio: Studio, config: AppConfig) -> gr.Blocks:
    """Start the page's server beside this thread."""
    page = build(studio, config)
    # one clip at a time: whoever comes second sees their place in the queue
    page.queue(max_size=config.waiting, default_concurrency_limit=1)
    fonts = ["system-ui", "sans-serif"]  # of the machine: gradio's own would be fetched from the network
    try:
        page.launch(
            server_name=config.host,
            server_port=config.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size=config.largest,
            theme=gr.themes.Default(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
    except OSError as error:
        raise ValueError(
            f"host={config.host} port={config.port} cannot be listened at: {error}; try another"
        ) from error
    return page


def build(studio: Studio, config: AppConfig) -> gr.Blocks:
    form = studio.pipeline.trained_form
    trained = f"{form.width} x {form.height} pixels, {form.fps:g} frames a second, {form.duration_s:g} s"
    weight = config.guidance.video.text
    with gr.Blocks(title="avgen", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(f"# avgen\n`{config.model}` was trained on clips of {trained}.")
        with gr.Row():
            with gr.Column(min_width=320):
                task = gr.Dropdown(
                    [(said, name) for name, said in TASKS.items()], value="t2av", label="Task", elem_id="task"
                )
                prompt = gr.Textbox(
                    label="What is seen and heard", placeholder="may be left empty", lines=2, elem_id="prompt"
                )
                given = {
                    "image": gr.Image(
                        type="filepath",
                        format="png",
                        label="First frame",
                        sources=["upload", "clipboard"],
                        height=220,
                        visible=False,
                        elem_id="image",
                    ),
                    "video": gr.Video(
                        label="Video",
                        sources=["upload"],
                        include_audio=True,
                        height=220,
                        visible=False,
                        elem_id="video",
                    ),
                    "audio": gr.Audio(
                        type="filepath", label="Sound", sources=["upload", "microphone"], visible=False, elem_id="audio"
                    ),
                }
                with gr.Group(visible=False) as hole:
                    with gr.Row():
                        hole_from = gr.Textbox(label="Anew from (s)", placeholder="0", min_width=140)
                        hole_to = gr.Textbox(label="to (s)", min_width=140)
                    remake = gr.Radio(["both", "video", "audio"], value="both", label="Which part of it")
                with gr.Row():
                    # a number field would show 0 where nothing is asked for
                    duration = gr.Textbox(
                        label="Duration (s)",
                        placeholder=f"as given, else {form.duration_s:g}",
                        min_width=140,
                        elem_id="duration",
                    )
                    seed = gr.Number(label="Seed", value=0, precision=0, min_width=140, elem_id="seed")
                with gr.Accordion("Steps and guidance", open=False):
                    steps = gr.Slider(
                        1,
                        max(100, config.solver.steps),
                        config.solver.steps,
                        step=1,
                        label=f"Steps ({config.solver.kind})",
                    )
                    text = gr.Slider(
                        min(1, weight), max(8, weight), weight, step=0.1, label="Weight of the text (1: off)"
                    )
                button = gr.Button("Make", variant="primary", elem_id="make")
            with gr.Column(min_width=320):
                clip = gr.Video(label="Clip", interactive=False, loop=True, height=360, buttons=[], elem_id="clip")
                sound = gr.Audio(label="Clip", interactive=False, visible=False, elem_id="sound")
                # its label would lie over the first frames
                sheet = gr.Image(
                    label="Frames and waveform",
                    show_label=False,
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="sheet",
                )
                notes = gr.HTML(elem_id="notes")
                with gr.Row():
                    save = gr.DownloadButton("Save the clip", visible=False, elem_id="save")
                    save_line = gr.DownloadButton("Save its manifest line", visible=False, elem_id="save_line")

        def fields(name: str) -> list[Any]:
            needed, useful = FILES[name]
            seen = [gr.update(visible=kind in needed | useful) for kind in FILE_KINDS]
            return [*seen, gr.update(visible=name == "inpaint")]

        task.change(
            fields, task, [*given.values(), hole], queue=False, show_progress="hidden", api_visibility="private"
        )

        def make(
            name: str,
            words: str,
            image: str | None,
            video: str | None,
            audio: str | None,
            length: str,
            number: float | None,
            step_count: int,
            weight: float,
            begin: str,
            end: str,
            which: str,
            progress: gr.Progress = gr.Progress(),  # noqa: B008  # gradio finds it by its default
        ) -> list[Any]:
            needed, useful = FILES[name]
            files = {"image": image, "video": video, "audio": audio}
            taken: dict[str, Any] = {k: Path(v) for k, v in files.items() if v is not None and k in needed | useful}
            progress(0, desc="reading")

            def asked() -> Shown:
                if missing := sorted(needed - set(taken)):
                    raise ValueError(f"{TASKS[name]} needs {' and '.join(WANTED[kind] for kind in missing)}")
                if name == "extend" and not taken:
                    raise ValueError(f"{TASKS[name]} needs a video, a sound or both: what is to go on")
                guidance = config.guidance
                if weight != guidance.video.text:  # moved: until then the sound's weight is the configured one
                    guidance = replace(
                        guidance, video=replace(guidance.video, text=weight), audio=replace(guidance.audio, text=weight)
                    )
                sample = SampleConfig(
                    model=config.model,
                    task=name,
                    prompt=words,
                    duration_s=seconds("Duration", length),
                    seed=int(number or 0),
                    out=config.out,
                    solver=replace(config.solver, steps=int(step_count)),
                    guidance=guidance,
                    edit=edit_of(name, begin, end, which),
                    precision=config.precision,
                    cache=config.cache,
                    **taken,
                )
                return studio.make(sample, lambda done, of: progress((done, of), desc="making", unit="steps"))

            return results(said_plainly(asked, studio), page.move_resource_to_block_cache)

        button.click(
            make,
            [task, prompt, *given.values(), duration, seed, steps, text, hole_from, hole_to, remake],
            [clip, sound, sheet, notes, save, save_line],
            show_progress_on=[clip, sound],
            scroll_to_output=True,
            api_visibility="private",
        )
    return page


def edit_of(task: str, begin: str, end: str, which: str) -> Edit:
    if task != "inpaint":
        return Edit()
    first, last = seconds("Anew from", begin), seconds("to", end)
    if first is None and last is None:
        if which == "both":
            raise ValueError(
                "say from when to when to make it anew, or choose video or audio alone for all of the clip"
            )
        return Edit(remake=which)
    if last is None:
        raise ValueError("say where the part to make anew ends")
    return Edit(remake=which, hole_s=(first or 0.0, last))


def seconds(field: str, words: str) -> float | None:
    """What a person typed; None for nothing."""
    if not words.strip():
        return None
    try:
        return float(words)
    except ValueError as error:
        raise ValueError(f"{field} = {words.strip()!r} is not a number of seconds, such as 2 or 1.5") from error


def said_plainly(make: Callable[[], Shown], studio: Studio) -> Shown:
    """What a person did wrong is a message on the page, in its words; a bug stays a bug."""
    try:
        return make()
    except (ValueError, OSError) as error:
        said = users_error(error)
        if said is None:
            raise
        raise gr.Error(html.escape(in_words(studio.as_given(said))), duration=None, print_exception=False) from error


def in_words(said: str) -> str:
    keys = "|".join(re.escape(key) for key in CALLED)
    return re.sub(rf"\b({keys})\b", lambda found: CALLED[found[0]], said)


def results(shown: Shown, copied: Callable[[str], str | None]) -> list[Any]:
    """What the page shows, of copies: where the files themselves are served, so is what others gave and asked."""
    clip, sheet, line = (copied(str(path)) for path in (shown.clip, shown.sheet, shown.line))
    picture = shown.has_picture
    lines = [*shown.notes, f"{shown.clip.name}, made in {shown.seconds:.1f} s"]
    return [
        gr.update(value=clip if picture else None, visible=picture),
        gr.update(value=None if picture else clip, visible=not picture),
        sheet,
        "".join(f"<p>{html.escape(line)}</p>" for line in lines),
        gr.update(value=clip, visible=True),
        gr.update(value=line, visible=True),
    ]
