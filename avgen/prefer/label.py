"""`avgen prefer label`: people say which clip of a pair is better, without knowing which is which.

A page on this machine shows two clips, A on the left. Which of a pair's clips is A is drawn before anybody looks, as
often one as the other, and stands in every answer. What people prefer becomes pairs that training reads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from avgen import command
from avgen.lines import append_line, relative, whole_lines
from avgen.prefer.pairs import PAIRS, Pair, Side, read_pairs, require_unchanged, write_pairs

ANSWERS = "answers.jsonl"
CHOICES = ("a", "b", "tie", "unsure")
EXAMPLES = (
    "avgen prefer label pairs=runs/pairs name=ann",
    "avgen prefer label pairs=runs/pairs name=ann seed=1 port=8001",
)
PAGE = Path(__file__).with_name("label.html")


@dataclass(frozen=True)
class LabelConfig:
    """Pairs to be looked at, and by whom."""

    pairs: Path  # folder that avgen prefer wrote, or its pairs.jsonl
    name: str  # whose answers these are
    out: Path = Path("runs/labels")  # folder of answers.jsonl and of the pairs.jsonl that follows from it
    port: int = 8000  # of the page on this machine; 0: any that is free
    seed: int = 0  # of the order of pairs, and of which clip is shown as A

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port} must lie between 0 and 65535")
        shown = self.pairs / PAIRS if self.pairs.is_dir() else self.pairs
        if (self.out / PAIRS).resolve() == shown.resolve():
            raise ValueError(
                f"out={self.out} is where pairs={self.pairs} lies, whose place the pairs that follow from answers "
                "would take: give another out (runs/labels is the default)"
            )


Key = tuple[str, frozenset[str], tuple[str, ...]]  # prompt, hashes of both clips, what is judged


@dataclass(frozen=True)
class Question:
    """A pair as it is shown."""

    number: int  # of the pair in its file
    pair: Pair
    winner_is_a: bool

    def side(self, letter: str) -> Side:
        """Shown as A or B."""
        return self.pair.winner if (letter == "a") == self.winner_is_a else self.pair.loser

    @property
    def asked(self) -> dict[str, Any]:
        """What the page says."""
        alone = {"video": "the picture alone", "audio": "the sound alone"}
        judged = alone[self.pair.trains[0]] if len(self.pair.trains) == 1 else ""
        return {"text": self.pair.text, "judged": judged}

    @property
    def key(self) -> Key:
        return key_of(self.pair)


def key_of(pair: Pair) -> Key:
    return pair.prompt, frozenset((pair.winner.sha256, pair.loser.sha256)), pair.trains


def questions(pairs: Sequence[Pair], seed: int) -> list[Question]:
    """In an order that tells nothing; of every two of them one shows the metrics' winner as A."""
    drawn = random.Random(seed)
    order = list(range(len(pairs)))
    drawn.shuffle(order)
    sides = [side for _ in range(0, len(pairs), 2) for side in drawn.sample((True, False), 2)]
    return [Question(number, pairs[number], side) for number, side in zip(order, sides, strict=False)]


class Survey:
    """The questions, and the answers so far; answering goes on where it stopped."""

    def __init__(self, config: LabelConfig) -> None:
        self.config, self.pairs = config, read_pairs(config.pairs)
        self.folder = config.pairs if config.pairs.is_dir() else config.pairs.parent
        self.questions = questions(self.pairs, config.seed)
        self.secret = secrets.token_hex(16)
        self.standing: dict[tuple[str, str], bool] = {}  # file and hash of clips of other rounds
        for pair in self.pairs:
            for side in (pair.winner, pair.loser):
                require_unchanged(self.folder / side.file, side.sha256)
        config.out.mkdir(parents=True, exist_ok=True)
        self.path = config.out / ANSWERS
        with self.alone():  # pairs may have been mined anew since, or a kill may have come between answer and pairs
            if self.answers:
                self.write_pairs()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Others may be answering too: who writes the pairs has read all answers."""
        with self.path.with_name(f".{ANSWERS}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.answers = whole_lines(self.path)
            yield

    @property
    def open(self) -> list[Question]:
        done = {_key(answer) for answer in self.answers if answer["name"] == self.config.name}
        return [q for q in self.questions if q.key not in done]

    def token(self, question: Question) -> str:
        """What a page calls a question. One that was shown by an earlier start, with the sides the other way round
        perhaps, has another; other sites' pages cannot know it."""
        prompt, clips, trains = question.key
        what = [self.secret, self.config.name, prompt, sorted(clips), trains, question.winner_is_a]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]

    def called(self, token: str) -> Question:
        found = next((q for q in self.questions if self.token(q) == token), None)
        if found is None:
            raise ValueError("the page is of an earlier start: no question is called so now")
        return found

    def answer(self, number: int, choice: str, seconds: float) -> None:
        with self.alone():
            self._answer(number, choice, seconds)
            self.write_pairs()

    def _answer(self, number: int, choice: str, seconds: float) -> None:
        question = next((q for q in self.open if q.number == number), None)
        if question is None or choice not in CHOICES:
            raise ValueError(f"answer {choice!r} to pair {number}: no open question has it")
        better = {"a": question.winner_is_a, "b": not question.winner_is_a}.get(choice)
        line = {
            "name": self.config.name,
            "prompt": question.pair.prompt,
            "trains": list(question.pair.trains),
            **{letter: question.side(letter).file for letter in ("a", "b")},
            **{f"{letter}_sha256": question.side(letter).sha256 for letter in ("a", "b")},
            "winner_is_a": question.winner_is_a,
            "choice": choice,
            "agrees": better,
            "seconds": round(seconds, 2),
            "at": round(time.time()),
        }
        append_line(self.path, line)
        self.answers.append(line)

    def write_pairs(self) -> None:
        """The pairs as people see them: the clip they chose wins, whatever the metrics said.

        Pairs that are not shown now are of other rounds, answered into the same folder: they stay, unless their clips
        are gone or were made anew, of which nobody could learn. The answers stay in any case.
        """
        shown = {q.key: q.pair for q in self.questions}
        path = self.config.out / PAIRS
        others = [pair for pair in read_pairs(path) if key_of(pair) not in shown] if path.is_file() else []
        found = [pair for pair in others if self.stands(pair)]
        outdated = len(found) < len(others)
        for answer in self.answers:
            pair = shown.get(_key(answer))
            if pair is not None and answer["choice"] in ("a", "b"):
                chosen = answer[f"{answer['choice']}_sha256"]
                first_won = pair.winner.sha256 == chosen
                winner, loser = (pair.winner, pair.loser) if first_won else (pair.loser, pair.winner)
                sides = [replace(s, file=relative(self.folder / s.file, self.config.out)) for s in (winner, loser)]
                found.append(replace(pair, winner=sides[0], loser=sides[1], by=answer["name"], gaps={}))
        if found:
            write_pairs(path, found)
        elif outdated:
            path.unlink()

    def stands(self, pair: Pair) -> bool:
        """Whether the clips of a pair of another round are there as they were; each is read once."""
        for side in (pair.winner, pair.loser):
            clip = side.file, side.sha256
            if clip not in self.standing:
                try:
                    require_unchanged(self.config.out / side.file, side.sha256)
                    self.standing[clip] = True
                except ValueError as error:
                    print(f"left out of {self.config.out / PAIRS}: {error}")
                    self.standing[clip] = False
            if not self.standing[clip]:
                return False
        return True

    def report(self) -> str:
        mine = [answer for answer in self.answers if answer["name"] == self.config.name]
        decided = [answer for answer in mine if answer["agrees"] is not None]
        if not decided:
            return f"{len(mine)} answers, none of which prefers a clip"
        agreed = sum(answer["agrees"] for answer in decided) / len(decided)
        first = sum(answer["choice"] == "a" for answer in decided) / len(decided)
        return (
            f"{len(mine)} answers, {len(decided)} of which prefer a clip: {agreed:.0%} of those agree with the "
            f"metrics, {first:.0%} chose A (half of what is shown as A is the metrics' winner)"
        )


def _key(answer: dict[str, Any]) -> Key:
    """Of the question that was answered. Clips are known by what they are: other clips may have their names by now."""
    hashes = frozenset(answer.get(f"{letter}_sha256", "") for letter in ("a", "b"))
    return answer["prompt"], hashes, tuple(answer.get("trains", ()))


class Handler(BaseHTTPRequestHandler):
    """The page, the next question, the clips under names that say nothing, and answers."""

    def __init__(self, survey: Survey, *args: Any) -> None:
        self.survey = survey
        super().__init__(*args)

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == [""]:
            self.send("text/html; charset=utf-8", PAGE.read_bytes())
        elif parts == ["next"]:
            left = self.survey.open
            asked = left[0].asked | {"token": self.survey.token(left[0])} if left else {"report": self.survey.report()}
            self.send("application/json", json.dumps({"left": len(left), **asked}).encode())
        elif len(parts) == 3 and parts[0] == "clip" and parts[2] in ("a", "b"):
            try:
                file = self.survey.folder / self.survey.called(parts[1]).side(parts[2]).file
                self.send_clip(file.read_bytes())
            except (ValueError, FileNotFoundError):
                self.send_error(404)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        try:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = self.survey.called(str(said["token"]))
            self.survey.answer(question.number, str(said["choice"]), float(said["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            self.send_error(400, str(error)[:200])
            return
        self.send("application/json", b"{}")

    def send_clip(self, whole: bytes) -> None:
        """All of it, or the one part that is asked for: some browsers play nothing that they cannot have in parts."""
        asked = re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", self.headers.get("Range", ""))
        if asked is None:
            self.send("video/mp4", whole, 200, {"Accept-Ranges": "bytes"})
            return
        (first, last, ending), size = asked.groups(), len(whole)
        begin = int(first) if first else max(0, size - int(ending))
        end = min(size, int(last) + 1) if last else size
        if begin >= end:
            self.send("text/plain", b"", 416, {"Content-Range": f"bytes */{size}"})
            return
        where = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {begin}-{end - 1}/{size}"}
        self.send("video/mp4", whole[begin:end], 206, where)

    def send(self, kind: str, body: bytes, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        said = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        self.send_response(code)
        for name, value in (said | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # answered before the clip had arrived: the browser no longer wants it
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: every answer is in the file."""


def served(config: LabelConfig) -> tuple[ThreadingHTTPServer, Survey]:
    survey = Survey(config)
    try:
        return ThreadingHTTPServer(("127.0.0.1", config.port), partial(Handler, survey)), survey
    except OSError as error:
        raise ValueError(f"port={config.port} cannot be listened at: {error}; try another, or 0") from error


def main(argv: list[str] | None = None) -> int:
    about = "say which clip of each pair is better, without knowing which is which"
    config = command.configure(LabelConfig, None, argv, about, EXAMPLES, "prefer label")
    server, survey = served(config)
    print(f"http://127.0.0.1:{server.server_address[1]}  {len(survey.open)} pairs to look at; Ctrl-C ends", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    print(survey.report())
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run(main))
