"""Tiny models of the real classes with random weights, saved as a hub would hold them: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def bpe_files(folder: Path, end: str = "</w>") -> tuple[str, str]:
    """A byte-pair vocabulary of single characters, as CLIP's and RoBERTa's tokenizers read it."""
    letters = [chr(c) for c in range(33, 127)]
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|startoftext|>", "<|endoftext|>"]
    tokens = [*marks, *letters, *(f"{c}{end}" for c in letters), *(f"Ġ{c}" for c in letters), "Ġ"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return str(folder / "vocab.json"), str(folder / "merges.txt")


def saved(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    vocab, merges = bpe_files(folder / "bpe")
    tokenizer = CLIPTokenizer(vocab, merges, model_max_length=24)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**SMALL, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": 24},
        vision_config={**SMALL, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return saved(folder, CLIPModel(config), CLIPProcessor(image_processor=images, tokenizer=tokenizer))


def clap(folder: Path, fused: bool = False) -> Path:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

    torch.manual_seed(0)
    vocab, merges = bpe_files(folder / "bpe")
    tokenizer = RobertaTokenizer(vocab, merges, model_max_length=30)
    extractor = ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=16_000,
        hop_length=160,
        max_length_s=1,
        fft_window_size=512,
        truncation="fusion" if fused else "rand_trunc",
    )
    config = ClapConfig(
        text_config={**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "projection_dim": 8},
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 32,
            "window_size": 4,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "patch_embeds_hidden_size": 16,
            "hidden_size": 32,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "num_hidden_layers": 2,
            "projection_dim": 8,
            "enable_fusion": fused,
        },
        projection_dim=8,
    )
    return saved(folder, ClapModel(config), ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer))


def ast(folder: Path) -> Path:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(**SMALL, max_length=128, num_mel_bins=32, num_labels=5)
    model = ASTForAudioClassification(config)
    model.classifier.dense.weight.data.normal_()  # random sounds would all fall into one class
    return saved(folder, model, ASTFeatureExtractor(num_mel_bins=32, max_length=128))


def videomae(folder: Path) -> Path:
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel

    torch.manual_seed(0)
    config = VideoMAEConfig(**SMALL, image_size=32, patch_size=16, num_frames=4)
    images = VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return saved(folder, VideoMAEModel(config), images)


def pe_av(folder: Path) -> Path:
    from transformers import (
        CLIPTokenizer,
        PeAudioFeatureExtractor,
        PeAudioVideoConfig,
        PeAudioVideoModel,
        PeVideoVideoProcessor,
    )

    torch.manual_seed(0)
    vocab, merges = bpe_files(folder / "bpe")
    tokenizer = CLIPTokenizer(vocab, merges, model_max_length=24)
    marks = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    layers = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
    codec = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "hidden_size": 16,
        "downsampling_ratios": [5, 8],
        "upsampling_ratios": [8, 5],
        "n_codebooks": 1,
        "codebook_size": 8,
        "codebook_dim": 4,
    }
    picture = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_tiny_patch16_384",
        "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32},
        "num_labels": 2,  # width of what the vision model gives; other than 2 is lost when saved
    }
    config = PeAudioVideoConfig(
        text_config={"model_type": "modernbert", **SMALL, **marks, "vocab_size": len(tokenizer)},
        audio_video_config={
            **layers,
            "audio_config": {**layers, "dac_config": codec},
            "video_config": {**layers, "vision_config": picture},
        },
    )
    images = PeVideoVideoProcessor(size={"height": 32, "width": 32})
    sound = PeAudioFeatureExtractor(sampling_rate=16_000, hop_length=40)
    return saved(folder, loud(PeAudioVideoModel(config)), images, sound, tokenizer)


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """With larger weights: to a freshly made large model all sounds are alike but for the last bit."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    return model


def judge(folder: Path) -> Path:
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    torch.manual_seed(0)
    vocab, merges = bpe_files(folder / "bpe", end="")
    words = {"image": "IMAGE", "audio": "AUDIO", "video": "VIDEO"} | {
        f"{sense}_{end}": f"{sense}_{end}" for sense in ("vision", "audio") for end in ("bos", "eos")
    }
    tokenizer = Qwen2Tokenizer(
        vocab,
        merges,
        extra_special_tokens={f"{name}_token": f"<|{word}|>" for name, word in words.items()},
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
    )
    number = {name: tokenizer.convert_tokens_to_ids(f"<|{word}|>") for name, word in words.items()}
    cut = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 1024}
    shown = "<|vision_bos|><|VIDEO|><|vision_eos|>"
    played = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    template = (
        "{% for turn in messages %}{% for part in turn['content'] %}"
        "{% if part['type'] == 'video' %}" + shown + "{% elif part['type'] == 'audio' %}" + played + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    )
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**cut),
        video_processor=Qwen2VLVideoProcessor(**cut),
        feature_extractor=WhisperFeatureExtractor(feature_size=16),
        tokenizer=tokenizer,
        chat_template=template,
    )
    turns = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "num_mel_bins": 16,
            "output_dim": 16,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 16,
            "patch_size": 4,
            "out_hidden_size": 16,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        text_config={**SMALL, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "rope_parameters": turns},
        **{f"{m}_token_{kind}": number[m] for m in ("audio", "image", "video") for kind in ("id", "index")},
        audio_start_token_id=number["audio_bos"],
        audio_end_token_id=number["audio_eos"],
        vision_start_token_id=number["vision_bos"],
        vision_end_token_id=number["vision_eos"],
        pad_token_id=tokenizer.pad_token_id,
    )
    return saved(folder, loud(Qwen2_5OmniThinkerForConditionalGeneration(config)), processor)


def whisper(folder: Path) -> Path:
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    torch.manual_seed(0)
    vocab, merges = bpe_files(folder / "bpe", end="")
    tokenizer = WhisperTokenizer(vocab, merges)
    ends = tokenizer.eos_token_id
    marks = {"decoder_start_token_id": ends, "eos_token_id": ends, "pad_token_id": ends}
    sides = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    config = WhisperConfig(
        **marks,
        **sides,
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=16,
        max_target_positions=24,
        bos_token_id=tokenizer.bos_token_id,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**marks, max_length=12, return_timestamps=False)
    return saved(folder, model, WhisperProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer))
