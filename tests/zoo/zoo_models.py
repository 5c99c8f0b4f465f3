# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Some 60 architectures of other authors, small, with random weights, and what each is called with."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from twins import Call
from zoo_checks import prepared


@dataclass(frozen=True)
class Model:
    """An architecture: who wrote it, how it is made, what it is called with for a batch and one of `sizes`."""

    library: str
    make: Callable[[], nn.Module]
    call: Callable[[int, int], Call]
    sizes: Sequence[int]

    def calls(self) -> list[Call]:
        """Three batches, and the second size where there is one; the first is what it is converted for."""
        first = self.sizes[0]
        others = [(2, size) for size in self.sizes[1:]]
        return [self.call(*one) for one in [(2, first), (1, first), (3, first), *others]]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def images(batch: int, size: int, channels: int = 3) -> Call:
    return Call((numbers(batch, channels, size, size),))


def named_images(batch: int, size: int) -> Call:
    return Call((), (("pixel_values", numbers(batch, 3, size, size)),))


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, 90, (batch, length), generator=torch.Generator().manual_seed(batch + length))


def tokens(batch: int, length: int) -> Call:
    return Call(
        (), (("input_ids", ids(batch, length)), ("attention_mask", torch.ones(batch, length, dtype=torch.long)))
    )


def source_and_target(batch: int, length: int) -> Call:
    return Call((), (("input_ids", ids(batch, length)), ("decoder_input_ids", ids(batch, length - 2))))


def sound(batch: int, length: int) -> Call:
    return Call((numbers(batch, length),))


def of_timm(name: str, **options: Any) -> nn.Module:
    timm = importlib.import_module("timm")
    return timm.create_model(name, pretrained=False, num_classes=10, **options)


_FREE = (
    "resnet18", "resnetv2_50", "resnext26ts", "regnetx_002", "regnety_002", "mobilenetv2_050",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "efficientnet_b0", "tf_efficientnet_lite0",
    "mnasnet_small", "ghostnet_050", "densenet121", "dla46_c", "hrnet_w18_small", "resnest14d", "skresnet18",
    "repvgg_a0", "rexnet_100", "ese_vovnet19b_dw", "res2net50_14w_8s", "convnext_atto", "edgenext_xx_small",
    "mobileone_s0", "mobilevit_xxs", "fastvit_t8", "efficientvit_b0", "poolformer_s12", "pvt_v2_b0",
    "xcit_nano_12_p16_224", "starnet_s1", "gernet_s", "inception_next_atto", "tiny_vit_5m_224",
)  # fmt: skip
_FIXED = (
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "levit_128s", "efficientformerv2_s0", "coat_lite_tiny",
    "gmlp_ti16_224", "mixer_s32_224", "visformer_tiny",
)  # fmt: skip


def _timm() -> dict[str, Model]:
    free = {name: Model("timm", partial(of_timm, name), images, (64, 96)) for name in _FREE}
    fixed = {name: Model("timm", partial(of_timm, name, img_size=64), images, (64,)) for name in _FIXED}
    return free | fixed


_SMALL: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "experts_implementation": "eager"}  # the grouped product knows no float64
_DISTILLED = {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
_HEADS = {"num_key_value_heads": 2, "head_dim": 8}
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 2,
}  # fmt: skip

_TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Callable[[int, int], Call], Sequence[int]]] = {
    "BertModel": ("BertConfig", _SMALL, tokens, (8, 13)),
    "RobertaModel": ("RobertaConfig", _SMALL, tokens, (8, 13)),
    "DistilBertModel": ("DistilBertConfig", _DISTILLED, tokens, (8, 13)),
    "AlbertModel": ("AlbertConfig", _SMALL | {"embedding_size": 16}, tokens, (8, 13)),
    "ElectraModel": ("ElectraConfig", _SMALL | {"embedding_size": 16}, tokens, (8, 13)),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
                        tokens, (8, 13)),
    "OPTForCausalLM": ("OPTConfig", _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32}, tokens, (8, 13)),
    "LlamaForCausalLM": ("LlamaConfig", _SMALL | _HEADS, tokens, (8, 13)),
    "MistralForCausalLM": ("MistralConfig", _SMALL | _HEADS, tokens, (8, 13)),
    "Qwen2ForCausalLM": ("Qwen2Config", _SMALL | {"num_key_value_heads": 2}, tokens, (8, 13)),
    "Qwen3ForCausalLM": ("Qwen3Config", _SMALL | _HEADS, tokens, (8, 13)),
    "GemmaForCausalLM": ("GemmaConfig", _SMALL | _HEADS, tokens, (8, 13)),
    "PhiForCausalLM": ("PhiConfig", _SMALL, tokens, (8, 13)),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4,
                                         "use_cache": False}, tokens, (8, 13)),
    "MixtralForCausalLM": ("MixtralConfig", _SMALL | _HEADS | _EXPERTS, tokens, (8, 13)),
    "T5Model": ("T5Config", {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                             "use_cache": False}, source_and_target, (8, 13)),
    "BartModel": ("BartConfig", _SMALL | _BART, source_and_target, (8, 13)),
    "ViTModel": ("ViTConfig", _VISION, named_images, (32,)),
    "DeiTModel": ("DeiTConfig", _VISION, named_images, (32,)),
    "ConvNextModel": ("ConvNextConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, named_images,
                      (32, 64)),
    "SegformerModel": ("SegformerConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
                                           "num_attention_heads": [1, 1, 2, 4], "decoder_hidden_size": 16},
                       named_images, (64, 96)),
    "ResNetModel": ("ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, named_images,
                    (32, 48)),
}  # fmt: skip


def of_transformers(model: str, config: str, options: dict[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    chance = dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout_prob", "layerdrop"), 0.0)
    known = getattr(transformers, config)()
    made = getattr(transformers, config)(**options, **{name: 0.0 for name in chance if hasattr(known, name)})
    return getattr(transformers, model)(made)


def of_segmentation_models(name: str) -> nn.Module:
    package = importlib.import_module("segmentation_models_pytorch")
    return getattr(package, name)("resnet18", encoder_weights=None, in_channels=3, classes=2)


@functools.cache
def torchcrepe_model() -> Any:
    """torchcrepe.model by itself: the package imports torchaudio, of which the network needs nothing."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'torchcrepe'", name="torchcrepe")
    package = sys.modules["torchcrepe"] = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360
    spec = importlib.util.spec_from_file_location("torchcrepe.model", Path(found.origin).parent / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["torchcrepe.model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def crepe() -> nn.Module:
    return torchcrepe_model().Crepe("tiny")


def facenet() -> nn.Module:
    return importlib.import_module("facenet_pytorch").InceptionResnetV1(classify=True, num_classes=10)


ZOO: dict[str, Model] = {
    **_timm(),
    **{
        name: Model("transformers", partial(of_transformers, name, config, options), call, sizes)
        for name, (config, options, call, sizes) in _TRANSFORMERS.items()
    },
    **{
        name: Model("segmentation-models-pytorch", partial(of_segmentation_models, name), images, (64, 96))
        for name in ("Unet", "FPN", "Linknet", "DeepLabV3Plus")
    },
    "Crepe": Model("torchcrepe", crepe, sound, (1024,)),
    "InceptionResnetV1": Model("facenet-pytorch", facenet, images, (96, 128)),
}


def let_torchvision_be_imported() -> None:
    """A torchvision that was compiled for another torch has no operators; the networks here need none of them."""
    if importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torchvision")


_kept: list[Any] = []


def pruned(name: str) -> tuple[nn.Module, list[Call]]:
    """The model, 90% of its weights zero, and its calls; skips where its library is not installed."""
    row = ZOO[name]
    calls = row.calls()
    torch.manual_seed(1)
    try:
        model = row.make()
    except ModuleNotFoundError as error:
        if error.name != row.library.replace("-", "_"):
            raise
        pytest.skip(f"{row.library}: {error}")
    return prepared(model, calls[0]), calls
