"""Text encoders: tiny random models of the real classes, saved to a folder and loaded as users load theirs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from avgen.models.architecture import ModelConfig, TextConfig, TowerConfig
from avgen.models.dit import AVTransformer
from avgen.models.encoders import FAMILIES, TransformersText, tokenizer_in
from avgen.models.text import GRAM_ROWS, ByteText, TextEncoder, bytes_of, gram_rows
from avgen.types import AudioGeometry, Batch, Text, TimeGrid

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = ["a", "red", "ball", "falls", "and", "rings", "bell", "blue", "lamp", "beeps", "twice", "while", "disc", "hums"]
CAPTIONS = ["a red ball falls and rings twice", "", "blue lamp"]
WIDTH, LAYERS = 32, 3


def save_tokenizer(folder: Path, around: tuple[str, str], limit: int = 64) -> None:
    """Words as tokens, between the special tokens that the family puts `around` a caption."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    before, after = around
    template = f"{before} $A {after}".strip()
    ids = [(token, vocabulary[token]) for token in around if token]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",  # as some decoders' are: the encoder must not care
        model_max_length=limit,
    ).save_pretrained(folder)


def save_qwen_tokenizer(folder: Path) -> None:
    """Qwen's own class, which transformers takes whatever the folder says: bytes merged to words, no special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=390, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([f"{a} {b}" for a in WORDS for b in WORDS], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    qwen = transformers.Qwen2Tokenizer(learnt["vocab"], merges, padding_side="left", model_max_length=64)
    qwen.save_pretrained(folder)


def t5(kind: str) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=24, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=4, pad_token_id=0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def clap() -> transformers.PreTrainedModel:
    """The whole of CLAP, as published: the audio tower must be left aside."""
    text = {"vocab_size": 24, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    text |= {"intermediate_size": 48, "max_position_embeddings": 80, "pad_token_id": 0}
    audio = {"hidden_size": 32, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2]}
    audio |= {"num_hidden_layers": 2, "spec_size": 32, "num_mel_bins": 8, "patch_size": 4, "patch_stride": [4, 4]}
    audio |= {"window_size": 4, "projection_dim": 16}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    return transformers.ClapModel(config)


def decoder(kind: str) -> transformers.PreTrainedModel:
    """With a head for the next token, as published: it must be left aside."""
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**DECODER))


DECODER = {
    "vocab_size": 400,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 80,
    "sliding_window": 4,
    "pad_token_id": 0,
}


def with_vision(kind: str) -> transformers.PreTrainedModel:
    """The whole of a model that also sees, as published: only its text decoder is wanted."""
    config_class = getattr(transformers, f"{kind}Config")
    text = dict(DECODER)
    if kind == "Gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 16, "patch_size": 8}
        config = config_class(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=399)
    else:
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        config = config_class(text_config=text, vision_config={**vision, **DEEP[kind]}, image_token_id=399)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


DEEP: dict[str, dict] = {"Qwen2_5_VL": {"fullatt_block_indexes": [0]}, "Qwen3VL": {"deepstack_visual_indexes": [0]}}

MODELS: dict[str, tuple[Callable[[], transformers.PreTrainedModel], tuple[str, str]]] = {
    "t5": (lambda: t5("T5"), ("", "</s>")),
    "umt5": (lambda: t5("UMT5"), ("", "</s>")),
    "clap": (clap, ("<s>", "</s>")),
    "gemma": (lambda: decoder("Gemma"), ("<s>", "")),
    "gemma2": (lambda: decoder("Gemma2"), ("<s>", "")),
    "gemma3_text": (lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**DECODER)), ("<s>", "")),
    "gemma3": (lambda: with_vision("Gemma3"), ("<s>", "")),
    "qwen2": (lambda: decoder("Qwen2"), ("", "")),
    "qwen3": (lambda: decoder("Qwen3"), ("", "")),
    "qwen2_5_vl": (lambda: with_vision("Qwen2_5_VL"), ("", "")),
    "qwen3_vl": (lambda: with_vision("Qwen3VL"), ("", "")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            build, around = MODELS[kind]
            made[kind] = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = build()
                for parameter in model.parameters():  # norms and biases too: none at its neutral value
                    parameter.data += 0.2 * torch.randn_like(parameter)
            model.save_pretrained(made[kind])
            if kind.startswith("qwen"):
                save_qwen_tokenizer(made[kind])
            else:
                save_tokenizer(made[kind], around)
        return made[kind]

    return folder


def test_every_family_is_tried() -> None:
    assert set(FAMILIES) == {*MODELS, "clap_text_model"}


@pytest.mark.parametrize("kind", MODELS)
def test_alone_as_in_a_batch(kind: str, folders: Callable[[str], Path]) -> None:
    encoder = TransformersText.load(folders(kind), max_length=16)
    assert isinstance(encoder, TextEncoder)
    together = encoder.encode(CAPTIONS)
    special = sum(map(bool, MODELS[kind][1]))
    lengths = [7 + special, max(special, 1), 2 + special]
    assert together.x.shape == (3, max(lengths), encoder.width)
    assert together.valid.sum(1).tolist() == lengths
    assert not together.dropped.any()
    for i, (caption, length) in enumerate(zip(CAPTIONS, lengths, strict=True)):
        alone = encoder.encode([caption])
        assert alone.x.shape == (1, length, encoder.width)
        assert alone.valid.all()
        torch.testing.assert_close(together.x[i, :length], alone.x[0], atol=1e-5, rtol=1e-5)
        assert not together.x[i, length:].any()
        assert alone.x.std() > 0.01
    assert torch.equal(encoder.encode(CAPTIONS).x, together.x)
    assert not together.x.requires_grad


@pytest.mark.parametrize("kind", MODELS)
def test_weights_are_the_folders(kind: str, folders: Callable[[str], Path]) -> None:
    """Not a single weight drawn anew: what is loaded is in the file, whatever it is called there."""
    stored = {value.numpy().tobytes() for value in load_file(folders(kind) / "model.safetensors").values()}
    encoder = TransformersText.load(folders(kind), max_length=16)
    loaded = {name: value.numpy().tobytes() for name, value in encoder.body.state_dict().items()}
    assert [name for name, value in loaded.items() if value not in stored] == []
    assert len(loaded) > 8 * LAYERS
    assert not any(parameter.requires_grad for parameter in encoder.body.parameters())
    assert not encoder.body.training


@pytest.mark.parametrize("kind", ["t5", "umt5"])
@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_embeddings_by_either_name(kind: str, kept: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Published T5 checkpoints hold their tied embeddings under one name or the other."""
    wanted = TransformersText.load(folders(kind), max_length=16).encode(CAPTIONS)
    for file in folders(kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    names = {"shared.weight", "encoder.embed_tokens.weight"}
    weights = load_file(tmp_path / "model.safetensors")
    embeddings = next(weights.pop(name) for name in names if name in weights)
    rest = {name: value for name, value in weights.items() if name not in names}
    save_file({**rest, kept: embeddings}, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(TransformersText.load(tmp_path, max_length=16).encode(CAPTIONS).x, wanted.x)


def test_missing_weights_are_an_error(folders: Callable[[str], Path], tmp_path: Path) -> None:
    for file in folders("t5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight"):
        TransformersText.load(tmp_path)


@pytest.mark.parametrize("kind", ["umt5", "clap", "gemma3_text", "qwen3"])
def test_layers(kind: str, folders: Callable[[str], Path]) -> None:
    last = TransformersText.load(folders(kind), max_length=16)
    chosen = TransformersText.load(folders(kind), max_length=16, layers=(0, -2, -1))
    assert chosen.width == 3 * last.width == 3 * WIDTH
    x, wanted = chosen.encode(CAPTIONS), last.encode(CAPTIONS)
    assert torch.equal(x.x[..., -WIDTH:], wanted.x)
    embeddings, before, _ = x.x[x.valid].split(WIDTH, dim=-1)
    for inner in (embeddings, before):
        torch.testing.assert_close(inner.square().mean(-1), torch.ones(len(inner)), atol=1e-3, rtol=0)
    # embeddings know nothing of the words around: "a" is the same in any caption of the same place
    again = chosen.encode(["a blue lamp"])
    offset = len(MODELS[kind][1][0]) // 3  # behind a mark of the beginning
    torch.testing.assert_close(again.x[0, offset, :WIDTH], x.x[0, offset, :WIDTH])
    positive = TransformersText.load(folders(kind), max_length=16, layers=(0, LAYERS - 1, LAYERS))
    assert torch.equal(positive.encode(CAPTIONS).x, x.x)
    assert positive.fingerprint == chosen.fingerprint


def test_wrong_layers_and_lengths(folders: Callable[[str], Path]) -> None:
    for layers in ((LAYERS + 1,), (-LAYERS - 2,)):
        with pytest.raises(ValueError, match="hidden states go from 0"):
            TransformersText.load(folders("t5"), layers=layers, max_length=16)
    with pytest.raises(ValueError, match="leaves no features"):
        TransformersText.load(folders("t5"), layers=(), max_length=16)
    with pytest.raises(ValueError, match="max_length=65 must lie between 1 and the tokenizer's 64"):
        TransformersText.load(folders("t5"), max_length=65)
    with pytest.raises(ValueError, match="no captions"):
        TransformersText.load(folders("t5"), max_length=16).encode([])


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message.split(":")[0] for record in caplog.records if record.name.startswith("avgen")]


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_a_long_caption_is_cut_and_reported_once(
    kind: str, folders: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = TransformersText.load(folders(kind), max_length=4)
    with caplog.at_level(logging.WARNING):
        encoder.encode(["blue lamp"])
        assert not reports(caplog)
        cut = encoder.encode(["a red ball falls", CAPTIONS[0], "a red ball"])
        encoder.encode(CAPTIONS)
    assert reports(caplog) == [f"a caption of {5 if kind == 't5' else 7} tokens is cut to max_length=4"]
    assert cut.x.shape[1] == 4
    kept = "a red ball" if kind == "t5" else "a red ball falls"  # T5 keeps its end mark
    torch.testing.assert_close(cut.x[1], encoder.encode([kept]).x[0], atol=1e-5, rtol=1e-5)


def test_fixed_length_is_wans_way(folders: Callable[[str], Path]) -> None:
    """Zeros up to max_length, and they count."""
    plain = TransformersText.load(folders("umt5"), max_length=12)
    fixed = TransformersText.load(folders("umt5"), max_length=12, fixed_length=True)
    text, wanted = fixed.encode(CAPTIONS), plain.encode(CAPTIONS)
    assert text.x.shape == (3, 12, WIDTH)
    assert text.valid.all()
    assert torch.equal(text.x[:, : wanted.x.shape[1]], wanted.x)
    assert not text.x[:, wanted.x.shape[1] :].any()
    ids = fixed.tokenizer(CAPTIONS, padding="max_length", max_length=12, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        wan = fixed.body(ids["input_ids"], ids["attention_mask"]).last_hidden_state * ids["attention_mask"][..., None]
    torch.testing.assert_close(text.x, wan, atol=1e-5, rtol=1e-5)


def test_bfloat16(folders: Callable[[str], Path]) -> None:
    for kind in ("umt5", "gemma3_text"):
        exact = TransformersText.load(folders(kind), max_length=16).encode(CAPTIONS)
        encoder = TransformersText.load(folders(kind), max_length=16, dtype=torch.bfloat16)
        text = encoder.encode(CAPTIONS)
        assert text.x.dtype == encoder.dtype == torch.bfloat16
        assert (text.x - exact.x).norm() < 0.05 * exact.x.norm()


def test_fingerprint_tells_encoders_apart(folders: Callable[[str], Path], tmp_path: Path) -> None:
    options = [{}, {"max_length": 17}, {"layers": (-2,)}, {"fixed_length": True}, {"dtype": torch.bfloat16}]
    found = [TransformersText.load(folders("t5"), **{"max_length": 16, **o}).fingerprint for o in options]
    found.append(TransformersText.load(folders("umt5"), max_length=16).fingerprint)
    for file in folders("t5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert TransformersText.load(tmp_path, max_length=16).fingerprint == found[0]
    save_tokenizer(tmp_path, ("<s>", "</s>"))
    found.append(TransformersText.load(tmp_path, max_length=16).fingerprint)
    assert len(set(found)) == len(found)
    encoder = TransformersText.load(folders("t5"), max_length=16)
    encoder.body.shared.weight.data[5, 3] += 1e-3
    assert encoder.fingerprint != found[0]


def test_a_fingerprint_knows_what_the_configuration_decides(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """But not what is said there and decides nothing, which other versions of a library write otherwise."""
    for file in folders("t5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first = TransformersText.load(tmp_path, max_length=16).fingerprint
    said = json.loads((tmp_path / "config.json").read_text())
    for change, same in (({"transformers_version": "9.9"}, True), ({"layer_norm_epsilon": 0.1}, False)):
        (tmp_path / "config.json").write_text(json.dumps(said | change))
        assert (TransformersText.load(tmp_path, max_length=16).fingerprint == first) == same


def test_an_encoder_that_is_not_there_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"the text encoder in /nowhere/at/all cannot be loaded: "):
        TransformersText.load("/nowhere/at/all")


@pytest.mark.parametrize("number", ["", "_2"])
def test_a_pipelines_folders(number: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    """A second encoder has the second tokenizer, whatever the first is."""
    encoder, tokenizer = f"text_encoder{number}", f"tokenizer{number}"
    transformers.UMT5EncoderModel.from_pretrained(folders("umt5")).save_pretrained(tmp_path / encoder)
    if number:
        save_qwen_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=rf"the tokenizer in {tmp_path}/{tokenizer} cannot be read: [^\n]*$"):
        TransformersText.load(tmp_path, max_length=16, subfolder=encoder)
    save_tokenizer(tmp_path / tokenizer, ("", "</s>"))
    read = TransformersText.load(tmp_path, max_length=16, subfolder=encoder)
    assert torch.equal(read.encode(CAPTIONS).x, TransformersText.load(folders("umt5"), 16).encode(CAPTIONS).x)


def test_another_encoders_tokenizer_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    transformers.UMT5EncoderModel.from_pretrained(folders("umt5")).save_pretrained(tmp_path / "text_encoder")
    save_qwen_tokenizer(tmp_path / "tokenizer")
    encoder = TransformersText.load(tmp_path, max_length=16, subfolder="text_encoder")
    with pytest.raises(ValueError, match=r"the tokenizer says token \d+, the encoder knows 24"):
        encoder.encode(CAPTIONS)


def test_other_models_are_refused(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a 'vit'.*t5, umt5, clap"):
        TransformersText.load(tmp_path)


def test_bytes_are_an_encoder_too() -> None:
    encoder = ByteText(max_length=12)
    assert isinstance(encoder, TextEncoder)
    text = encoder.encode(CAPTIONS)
    assert text.x.dtype == encoder.dtype
    assert text.valid.sum(1).tolist() == [12, 1, 10]
    assert ByteText(12).fingerprint == encoder.fingerprint != ByteText(13).fingerprint
    with pytest.raises(ValueError, match="max_length=0"):
        ByteText(0)


@pytest.mark.parametrize("kind", ["bytes", "umt5"])
def test_a_model_trains_on_what_an_encoder_says(kind: str, folders: Callable[[str], Path]) -> None:
    encoder = ByteText(64) if kind == "bytes" else TransformersText.load(folders(kind), 16)
    config = TextConfig(width=16, depth=1, heads=2) if encoder.width is None else TextConfig("features", encoder.width)
    model = AVTransformer.of(ModelConfig(None, TowerConfig(5, 32, 2, 1), config))
    torch.nn.init.ones_(model.towers["audio"].head.weight)
    torch.nn.init.normal_(model.blocks[0].towers["audio"].text_attn.to_out.weight)
    sound = AudioGeometry(5, TimeGrid(640, 640), 16000).stream(torch.randn(3, 5, 4))
    text: Text = encoder.encode(CAPTIONS)
    model(Batch(None, sound, text, text)).audio.square().mean().backward()
    assert model.towers["audio"].text_embed[0].weight.grad.any()


def test_a_run_of_bytes_has_one_row_wherever_it_stands() -> None:
    rows = gram_rows(bytes_of(["red ball", "a red ball, bleu"], 64).x, 5)
    ball = [rows[0, 8], rows[1, 10]]  # the places of "ball"'s last letter, behind the mark that begins a caption
    assert ball[0] == ball[1]
    assert len(rows[1, 5:17].unique()) > 10
    assert rows.min() >= 0
    assert rows.max() < GRAM_ROWS


# Sentencepiece folders as published, of a model alone: file, class, special pieces, what surrounds a caption
SENTENCEPIECE = {
    "t5": ("spiece.model", "T5Tokenizer", {"eos_id": 1, "unk_id": 2, "bos_id": -1}, ([], [1])),
    "gemma": (
        "tokenizer.model",
        "GemmaTokenizer",
        {"eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True, "add_dummy_prefix": False}
        | {"pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>", "model_type": "bpe", "vocab_size": 330},
        ([2], []),
    ),
}


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_sentencepiece_model_alone_is_read_as_sentencepiece_reads_it(kind: str, tmp_path: Path) -> None:
    pieces = pytest.importorskip("sentencepiece")
    file, name, special, (before, after) = SENTENCEPIECE[kind]
    model = io.BytesIO()
    settings = {"vocab_size": 48, "model_type": "unigram", "hard_vocab_limit": False, "minloglevel": 2, "pad_id": 0}
    sentences = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:3]]
    pieces.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, **settings | special)
    (tmp_path / file).write_bytes(model.getvalue())
    described = {"tokenizer_class": name, "model_max_length": 64, "add_bos_token": bool(before)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    tokenizer = tokenizer_in(tmp_path, "")
    plain = pieces.SentencePieceProcessor(model_proto=model.getvalue())
    for caption in CAPTIONS:
        assert tokenizer(caption)["input_ids"] == before + plain.encode(caption) + after


def test_a_missing_sentencepiece_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    (tmp_path / "spiece.model").write_bytes(b"")
    monkeypatch.setattr("avgen.models.encoders.find_spec", lambda name: None)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr("avgen.models.encoders.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[text\]'"):
        tokenizer_in(tmp_path, "")
