"""An adapter counts only when it is whole: the empty file that ZeRO-3 can leave is found before anything else is done with it."""

import pytest
import torch
from safetensors.torch import save_file

from ka2l_ray.finetune.export import check_adapter
from ka2l_ray.finetune.job import Refusal

STATE = {"base_model.model.q.lora_A.default.weight": torch.ones(2, 4), "base_model.model.q.lora_B.default.weight": torch.ones(4, 2)}
SAVED = {k.replace(".default", ""): v for k, v in STATE.items()}


def checked(folder, saved, state=STATE):
    save_file(saved, folder / "adapter_model.safetensors")
    check_adapter(folder, state)


def test_a_whole_adapter_passes(tmp_path):
    checked(tmp_path, SAVED)


@pytest.mark.parametrize(
    ("saved", "state", "message"),
    [
        ({}, STATE, "2 of 2 tensors are missing or empty"),
        (dict(list(SAVED.items())[:1]), STATE, "1 of 2 tensors"),
        (SAVED | {"base_model.model.q.lora_B.weight": torch.ones(0)}, STATE, "1 of 2 tensors"),
        (SAVED, STATE | {"base_model.model.q.lora_B.default.weight": torch.ones(4, 3)}, "1 of 2 tensors"),
        ({}, {}, "0 of 0 tensors"),
        (SAVED | {"base_model.model.q.lora_B.weight": torch.zeros(4, 2)}, STATE, "changes nothing"),
    ],
)
def test_an_adapter_with_a_hole_is_refused(tmp_path, saved, state, message):
    with pytest.raises(Refusal, match=message):
        checked(tmp_path, saved, state)
