import pytest
import torch

from ip2p.errors import ModelError
from ip2p.model.unet import require_editor
from tests.grown import grow_unet


@torch.no_grad()
def test_before_training_the_editor_equals_the_teacher_for_any_source(teacher):
    torch.manual_seed(0)
    editor = grow_unet(teacher.unet).eval()
    side = teacher.unet.config.sample_size
    noisy = torch.randn(2, teacher.latent_channels, side, side)
    context = torch.randn(2, 8, teacher.unet.config.cross_attention_dim)
    for source in (torch.zeros_like(noisy), 10 * torch.randn_like(noisy)):
        grown = editor(torch.cat([noisy, source], 1), torch.tensor(300), context).sample
        assert torch.allclose(grown, teacher.unet(noisy, torch.tensor(300), context).sample, atol=1e-5)
    assert torch.equal(editor.conv_in.bias, teacher.unet.conv_in.bias)


def test_a_teacher_is_not_an_editor(teacher):
    with pytest.raises(ModelError, match="give the folder of a trained editor"):
        require_editor(teacher.unet, teacher.latent_channels, "editor: ./x")
