"""A captioning model of the library transformers (BLIP, BLIP-2, GIT, or a model that chats about pictures)."""

from __future__ import annotations

import re

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from utils.errors import DataError, first_line

QUESTION = "Describe the object in one short sentence: what it is, its colours and its material."
MAX_TOKENS = 40


class Captioner:
    """Writes one caption for each picture.

    Args:
        name: a folder with the model, or its name on the Hugging Face Hub.

    Raises:
        DataError: its files are missing, or it is not a captioning model.
    """

    def __init__(self, name: str, *, device: torch.device) -> None:
        self.name, self.device = name, device
        try:
            self.processor = AutoProcessor.from_pretrained(name)
            self.model = AutoModelForImageTextToText.from_pretrained(name).to(device).eval()
        except (OSError, ValueError, KeyError, ImportError) as err:
            raise DataError(
                f"--model={name}: cannot be loaded ({first_line(err)}); name a folder with the files of a captioning "
                "model, or its name on the Hugging Face Hub while you are online"
            ) from err

    @torch.no_grad()
    def __call__(self, pictures_BHW3: np.ndarray) -> list[str]:
        """Describe pictures (B, H, W, 3), uint8."""
        pictures = list(pictures_BHW3)
        if self.processor.chat_template:
            content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
            asked = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = self.processor(images=pictures, text=[asked] * len(pictures), padding=True, return_tensors="pt")
        else:
            inputs = self.processor(images=pictures, return_tensors="pt")
        inputs = inputs.to(self.device)
        ids_BL = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        if self.processor.chat_template:
            ids_BL = ids_BL[:, inputs["input_ids"].shape[1] :]  # without the question
        return [tidied(text) for text in self.processor.batch_decode(ids_BL, skip_special_tokens=True)]


def tidied(text: str) -> str:
    """Make a caption of what a model wrote: one line, without a full stop or words about the picture."""
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").strip()
    text = re.sub(
        r"^(?:there is|this is|the image shows|a (?:3d )?(?:render|rendering|model|picture) of) ", "", text, flags=re.I
    )
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
