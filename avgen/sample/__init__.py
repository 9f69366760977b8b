"""From a checkpoint to clips: `AVPipeline.from_pretrained(path)(task=..., prompt=...)` or `avgen sample`."""
