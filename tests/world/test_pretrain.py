import torch
from safetensors.torch import load_file
from torch import nn

from ip2p.checkpoint import checkpoints
from ip2p.models import EMBEDDED
from ip2p.muon import orthogonalised
from ip2p.world.pretrain import pretrain
from ip2p.world.pretrain.fit import Leg, fit


def test_training_goes_on_from_the_shipped_weights(tiny, tmp_path):
    pretrain.run(tiny, work=tmp_path, part="adopt")
    for part, folder, prefix in (("vae", "teacher/vae", ""), ("unet", "teacher/unet", "unet."), ("clip", "clip", "")):
        kept = load_file(checkpoints(tmp_path / part)[0])
        shipped = load_file(next((EMBEDDED / folder).glob("*.safetensors")))
        assert all(torch.equal(kept[f"ema.{prefix}{k}"], v.float()) for k, v in shipped.items() if v.is_floating_point())


def test_parts_that_have_checkpoints_keep_them(tiny, tmp_path):
    pretrain.run(tiny, work=tmp_path, part="adopt")
    before = checkpoints(tmp_path / "vae")[0].stat().st_mtime_ns
    pretrain.run(tiny, work=tmp_path, part="adopt")
    assert checkpoints(tmp_path / "vae")[0].stat().st_mtime_ns == before


def test_a_leg_resumed_ends_where_an_uninterrupted_one_does(tmp_path):
    def trained(folder, *legs):
        for steps in legs:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))

            def loss(step, generator, model=model):
                return model(torch.randn(8, 16, generator=generator)).square().mean(), {}

            ema = fit(model, loss, Leg(steps=steps, lr=0.01, warmup=2, decay=0), folder)
        return ema

    whole, resumed = trained(tmp_path / "a", 6), trained(tmp_path / "b", 3, 6)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_orthogonalised_singular_values_are_near_one_whatever_the_shape():
    torch.manual_seed(0)
    for shape in ((32, 100), (100, 32)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)).float())
        assert 0.6 < values.min() < values.max() < 1.3
