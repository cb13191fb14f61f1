"""Every backbone family: the joint processor's tensors, pixel limits, and exact hypergradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import BertConfig, ProcessorMixin
from transformers.utils import is_torchvision_available

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.hypergradients.products import DoubleBackward, ForwardMode
from dreamprm.models import reward_model
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig, TinyConfig
from dreamprm.models.families import FAMILIES, family_of
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.tiny import TINY_BACKBONES
from tests.test_reward_model import TINY, rows

JOINT = {
    "tiny-qwen2-vl": "Qwen2VLProcessor",
    "tiny-qwen2.5-vl": "Qwen2_5_VLProcessor",
    "tiny-qwen3-vl": "Qwen3VLProcessor",
    "tiny-internvl": "InternVLProcessor",
    "tiny-llava-onevision": "LlavaOnevisionProcessor",
    "tiny-idefics3": "Idefics3Processor",
    "tiny-smolvlm": "Idefics3Processor",  # its own needs num2words, for videos
}


def with_images() -> list[str]:
    return [name for name, kind in TINY_BACKBONES.items() if kind in FAMILIES]


def varied(folder: Path) -> list[Trajectory]:
    """Two images, none, one wide, one tall, one that fits no grid; noise, so that places matter."""
    generator = torch.Generator().manual_seed(0)
    paths = []
    for i, size in enumerate([(56, 56), (84, 56), (300, 60), (40, 150), (97, 113)]):
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(paths[-1])
    pictures = [tuple(paths[:2]), (), (paths[2],), (paths[3],), (paths[4],)]
    return [Trajectory(f"{i}", "d", "where?", ("here",), p) for i, p in enumerate(pictures)]


def joint_processor(model: ProcessRewardModel, name: str, monkeypatch: Any) -> Any:
    """The family's own processor, but for its videos."""
    tokenizer, config = model.tokenizer, model.backbone.config  # type: ignore[union-attr]
    options: dict[str, Any] = {}
    vision: Any = config.vision_config  # type: ignore[union-attr]
    if name == "tiny-internvl":
        for key, word in (("start", "<img>"), ("end", "</img>"), ("context", "<IMG_CONTEXT>")):
            setattr(tokenizer, f"{key}_image_token", word)
            setattr(tokenizer, f"{key}_image_token_id", tokenizer.convert_tokens_to_ids(word))
        tokenizer.video_token = "<video>"
        options["image_seq_length"] = 4
    if name == "tiny-llava-onevision":
        side = vision.image_size // vision.patch_size
        options |= {"num_image_tokens": side**2, "vision_feature_select_strategy": "full"}
    if name in ("tiny-idefics3", "tiny-smolvlm"):
        options["image_seq_len"] = 4
    # Only the check of the video processor, which is None here, needs torchvision.
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *args: None)
    return getattr(transformers, JOINT[name])(
        image_processor=model.image_processor, tokenizer=tokenizer, **options
    )


needs_torchvision = pytest.mark.skipif(
    not is_torchvision_available(), reason="torchvision is not installed"
)


@pytest.mark.parametrize("backend", ["Pil", pytest.param("", marks=needs_torchvision)])
@pytest.mark.parametrize("name", with_images())
def test_tensors_are_those_of_the_joint_processor(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = varied(tmp_path)
    model = build_model(ModelConfig(name, tiny=TinyConfig(32, 1, 2, 1, 300)), data, seed=0)
    assert model.images is not None
    kind = type(model.image_processor).__name__.removesuffix("Pil") + backend
    settings = model.image_processor.to_dict()  # type: ignore[union-attr]
    settings = {k: v for k, v in settings.items() if not k.endswith("_type")}
    model.image_processor = model.images.processor = getattr(transformers, kind)(**settings)
    found = model.encoder()(data)["inputs"]
    before, after = model.images.around
    texts = [
        (before + model.images.placeholder + after) * len(t.images) + "where?\n\nhere<|step|>"
        for t in data
    ]
    pictures = [[Image.open(path).convert("RGB") for path in t.images] for t in data]
    processor = joint_processor(model, name, monkeypatch)
    if name not in ("tiny-llava-onevision", "tiny-smolvlm", "tiny-idefics3"):
        pictures = [picture for row in pictures for picture in row]  # type: ignore[misc]
    expected = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    if name == "tiny-internvl":  # whose processor pads on the left
        found["input_ids"], found["attention_mask"] = (
            torch.stack([t.roll(int((1 - m).sum())) for t, m in zip(x, mask, strict=True)])
            for mask in [found["attention_mask"]]
            for x in (found["input_ids"], found["attention_mask"])
        )
    assert found.keys() == expected.keys() - {"token_type_ids"}
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("name", with_images())
def test_fewer_pixels_are_fewer_tokens(name: str, tmp_path: Path) -> None:
    data = varied(tmp_path)
    lengths = []
    for pixels in (None, 56 * 56):
        config = ModelConfig(name, tiny=TINY, max_pixels=pixels, freeze_vision=pixels is not None)
        model = build_model(config, data, seed=0)
        lengths.append(len(model.encoder().tokens(data[4])[0]))
        assert all(0 < x < 1 for row in model.score(data) for x in row)  # and the counts agree
        frozen = [n for n, p in model.backbone.named_parameters() if not p.requires_grad]
        assert bool(frozen) is (pixels is not None)
        assert all("visual" in n or "vision" in n for n in frozen)
    assert lengths[1] < lengths[0]


def reweighted(model: ProcessRewardModel, batch: dict[str, Any]) -> tuple[Any, ...]:
    """A loss weighted by solution, its lower and upper parameters, and a vector."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    def loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        tensors = dict(zip(names, lower, strict=True))
        logits = torch.func.functional_call(model, tensors, (batch,))
        losses = (logits.sigmoid() - 0.3).square() * batch["step_mask"]
        return (upper[0].sigmoid() * losses.sum(-1)).mean()

    lower = [p.detach() for p in model.parameters() if p.requires_grad]
    upper = [torch.linspace(-0.4, 0.7, len(batch["outcome"]), dtype=lower[0].dtype)]
    generator = torch.Generator().manual_seed(1)
    q = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in lower]
    return loss, lower, upper, q


@pytest.mark.parametrize("name", TINY_BACKBONES)
def test_forward_mode_is_exact(name: str, tmp_path: Path) -> None:
    data = rows(tmp_path, images=TINY_BACKBONES[name] in FAMILIES)
    tiny = TinyConfig(width=32, layers=1, heads=2, vision_layers=1, vocabulary=300)
    model = build_model(ModelConfig(name, tiny=tiny), data, seed=0).double()
    torch.nn.init.normal_(model.readout.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    loss, lower, upper, q = reweighted(model, model.encoder()(data))
    (expected,) = DoubleBackward(loss, lower, upper).cross(q)
    (found,) = ForwardMode(loss, lower, upper).cross(q)
    assert torch.allclose(found, expected, rtol=1e-8)
    assert (expected.abs() > 1e-6).all()
    expected_hvp = torch.cat([x.flatten() for x in DoubleBackward(loss, lower, upper).hvp(q)])
    found_hvp = torch.cat([x.flatten() for x in ForwardMode(loss, lower, upper).hvp(q)])
    # transformers' norms and rotary embeddings compute in fp32 whatever they are given.
    assert (found_hvp - expected_hvp).norm() < 1e-5 * expected_hvp.norm()


def test_what_is_not_supported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert family_of(BertConfig()) is None
    config = transformers.LlavaConfig()
    with pytest.raises(UserError, match=r"type 'llava' are not supported.*qwen2_vl, .*smolvlm"):
        family_of(config)
    build_model(ModelConfig("tiny-qwen2-vl", tiny=TINY), [], seed=0).save_pretrained(tmp_path)

    def missing(*args: Any) -> None:
        raise ImportError("SomeImageProcessor requires the Torchvision library")

    monkeypatch.setattr(reward_model.AutoImageProcessor, "from_pretrained", missing)
    with pytest.raises(UserError, match="install the torchvision that goes with your torch"):
        ProcessRewardModel.from_pretrained(tmp_path)
