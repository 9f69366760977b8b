"""What two channels do that one would not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.metric import Definition, Measure, Metric, Needs, NotApplicable, Setup, Take

SOUND = Needs(sound=True)


def metrics(setup: Setup) -> Sequence[Metric]:
    return (
        Measure(
            Definition("stereo.correlation", "Correlation of left and right: 1 is mono in two channels.", needs=SOUND),
            correlation,
        ),
        Measure(
            Definition(
                "stereo.side_db", "Power of (L - R) / 2 over that of (L + R) / 2; at least -120.", "dB", needs=SOUND
            ),
            side,
        ),
        Measure(
            Definition(
                "stereo.mono_loss_db",
                "What mixing to mono loses: mean power of the channels over that of their mean; at most 120.",
                "dB",
                "lower",
                needs=SOUND,
            ),
            mono_loss,
        ),
        Measure(
            Definition(
                "stereo.balance_db", "Power of the left over that of the right channel.", "dB", "zero", needs=SOUND
            ),
            balance,
        ),
    )


def channels(take: Take) -> tuple[np.ndarray, np.ndarray]:
    if len(take.sound.wave) != 2:
        raise NotApplicable(f"the sound has {len(take.sound.wave)} channels, not two")
    left, right = take.sound.wave.astype(np.float64)
    if min(np.square(left).mean(), np.square(right).mean()) < 1e-10:
        raise NotApplicable("a channel is silent")
    return left, right


def correlation(take: Take) -> float:
    left, right = channels(take)
    return float(np.corrcoef(left, right)[0, 1])


def side(take: Take) -> float:
    left, right = channels(take)
    return decibel(np.square(left - right).mean(), np.square(left + right).mean())


def mono_loss(take: Take) -> float:
    left, right = channels(take)
    return decibel((np.square(left) + np.square(right)).mean() / 2, np.square((left + right) / 2).mean())


def balance(take: Take) -> float:
    left, right = channels(take)
    return decibel(np.square(left).mean(), np.square(right).mean())


def decibel(one: float, other: float) -> float:
    return float(np.clip(10 * np.log10(max(one, 1e-20) / max(other, 1e-20)), -120, 120))
