"""Whether anyone speaks (silero-vad), and how clean it sounds (DNSMOS): networks that come inside their wheels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import torch

from eval.hosted import mono
from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Setup, Take, versions
from eval.take import Sound

RATE_HZ = 16_000
LEAST_S = 0.5  # of speech, for its quality to be judged
SPEAKING = 0.5  # probability from which a window counts
INSTALL = "pip install -e '.[eval]'"
VAD = Needs(sound=True, packages=("silero_vad",), licence="MIT", install=INSTALL)
MOS = Needs(sound=True, packages=("silero_vad", "speechmos", "onnxruntime"), licence="MIT", install=INSTALL)
SCALES = {
    "ovrl": "overall quality (P.835 OVRL)",
    "sig": "quality of the speech (P.835 SIG)",
    "bak": "quietness of the background (P.835 BAK)",
}
MOS_WINDOW_S = 9.01
# from the network's outputs, in their order, to opinion scores: the published polynomials
CURVES = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}


def metrics(setup: Setup) -> Sequence[Metric]:
    said = {"least_s": LEAST_S, "speaking": SPEAKING, **versions("silero-vad", "speechmos")}
    return (
        Measure(
            Definition(
                "speech.activity",
                "Share of 32 ms windows that silero-vad takes for speech.",
                needs=VAD,
                parameters={"speaking": SPEAKING, **versions("silero-vad")},
            ),
            lambda take: float((take.sound.once(speaking) >= SPEAKING).mean()),
        ),
        *(
            Measure(
                Definition(
                    f"speech.dnsmos_{name}",
                    f"DNSMOS's estimate of {says}, 1 to 5; only where somebody speaks for half a second.",
                    "MOS",
                    "higher",
                    needs=MOS,
                    parameters=said,
                ),
                quality(name),
            )
            for name, says in SCALES.items()
        ),
    )


@lru_cache(maxsize=1)
def vad() -> Any:
    from silero_vad import load_silero_vad

    return load_silero_vad()


def speaking(sound: Sound) -> np.ndarray:
    """(windows,) probability of speech."""
    wave = torch.from_numpy(mono(sound, RATE_HZ))
    window = 512
    padded = torch.nn.functional.pad(wave, (0, -len(wave) % window))
    model = vad()
    model.reset_states()
    with torch.inference_mode():
        return np.array([float(model(part, RATE_HZ)) for part in padded.split(window)])


@lru_cache(maxsize=1)
def mos() -> Any:
    """speechmos carries the network; its own Python would also want librosa, for a scale that is not used here."""
    import onnxruntime

    path = resources.files("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def opinion(sound: Sound) -> dict[str, float]:
    """Means over 9.01 s windows, one a second; shorter sounds are looped, as the network was meant to be used."""
    wave = np.clip(mono(sound, RATE_HZ), -1, 1)
    length = int(MOS_WINDOW_S * RATE_HZ)
    wave = np.tile(wave, -(-length // max(1, len(wave))))[: max(length, len(wave))]
    starts = range(0, len(wave) - length + 1, RATE_HZ)
    raw = np.stack([mos().run(None, {"input_1": wave[None, s : s + length].astype(np.float32)})[0][0] for s in starts])
    columns = zip(CURVES.items(), raw.T, strict=True)
    return {name: float(np.polyval(curve, column).mean()) for (name, curve), column in columns}


def quality(name: str) -> Callable[[Take], float]:
    def of(take: Take) -> float:
        spoken = float((take.sound.once(speaking) >= SPEAKING).sum()) * 512 / RATE_HZ
        if spoken < LEAST_S:
            raise NotApplicable(f"{spoken:.2f} s of speech are too little to judge: at least {LEAST_S} s")
        return take.sound.once(opinion)[name]

    return of
