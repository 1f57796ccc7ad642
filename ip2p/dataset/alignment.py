"""How well two images of a pair lie on each other: shift, zoom, and change outside the edited region.

Outputs that are shifted or zoomed against the input are a known fault of trained editors, and no CLIP score sees it.
Shift is the peak of phase correlation of edge images (Kuglin & Hines 1975); zoom the scale at which edges
correlate best there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ZOOMS = (0.9, 0.95, 1.0, 1.05, 1.1)
_SIDE = 96
"""Pixels of the side at which pairs are compared."""
_SURE = 1.1
"""A zoom other than 1 must raise the correlation by this factor."""
_REGION = 0.25
"""A pixel is in the edited region if its smoothed change is over this share of the greatest."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Of each pair `B`: `shift` as a share of the side, `zoom` factor, `outside`: mean change outside the edited region, 0 to 1."""

    shift: Tensor
    zoom: Tensor
    outside: Tensor


@torch.no_grad()
def align(before_BCHW: Tensor, after_BCHW: Tensor) -> Alignment:
    """Measure pairs of images in [0, 1] of one size."""
    before, after = (F.interpolate(x.float(), size=(_SIDE, _SIDE), mode="area") for x in (before_BCHW, after_BCHW))
    found = [_correlate(_edges(before), _edges(_zoomed(after, 1 / z))) for z in ZOOMS]
    peaks_ZB, shifts_ZB = (torch.stack([f[i] for f in found]) for i in (0, 1))
    middle = ZOOMS.index(1.0)
    best_B = torch.where(peaks_ZB.max(0).values > _SURE * peaks_ZB[middle], peaks_ZB.argmax(0), middle)
    return Alignment(
        shift=shifts_ZB.gather(0, best_B[None])[0],
        zoom=torch.tensor(ZOOMS, device=best_B.device)[best_B],
        outside=_outside(before, after),
    )


@torch.no_grad()
def layout_kept(before_BCHW: Tensor, after_BCHW: Tensor) -> Tensor:
    """How much of the layout two images of each pair `B` share: correlation of their edges where they lie, 1 for a copy."""
    a, b = (_edges(F.interpolate(x.float(), size=(_SIDE, _SIDE), mode="area")) for x in (before_BCHW, after_BCHW))
    a, b = (x - x.mean((1, 2), keepdim=True) for x in (a, b))
    norms = a.square().sum((1, 2)).sqrt() * b.square().sum((1, 2)).sqrt()
    return (a * b).sum((1, 2)) / norms.clamp(min=1e-8)


def _edges(images_BCHW: Tensor) -> Tensor:
    """Strength of edges `BHW` under a window that fades to the borders."""
    grey = images_BCHW.mean(1)
    dy, dx = torch.gradient(grey, dim=(1, 2))
    window = torch.hann_window(_SIDE, periodic=False, device=grey.device)
    return (dx**2 + dy**2).sqrt() * window[:, None] * window


def _correlate(a_BHW: Tensor, b_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of edges at the peak of phase correlation, and how far from the centre it lies, as a share of the side."""
    a, b = (x - x.mean((1, 2), keepdim=True) for x in (a_BHW, b_BHW))
    product = torch.fft.rfft2(a) * torch.fft.rfft2(b).conj()
    surface = torch.fft.irfft2(product / product.abs().clamp(min=1e-8), s=a.shape[-2:])
    for _ in range(2):  # twice, so that a lone peak stays where it is
        surface = F.avg_pool2d(F.pad(surface[:, None], (1, 1, 1, 1), mode="circular"), 3, stride=1)[:, 0]
    index = surface.flatten(1).argmax(1)
    norms = a.square().sum((1, 2)).sqrt() * b.square().sum((1, 2)).sqrt()
    peak = torch.fft.irfft2(product, s=a.shape[-2:]).flatten(1).gather(1, index[:, None])[:, 0] / norms.clamp(min=1e-8)
    y, x = index // _SIDE, index % _SIDE
    y, x = (torch.where(v > _SIDE // 2, v - _SIDE, v).float() for v in (y, x))
    return peak, (x**2 + y**2).sqrt() / _SIDE


def _zoomed(images_BCHW: Tensor, factor: float) -> Tensor:
    """Images magnified about their centres, same size; what lies beyond is mirrored."""
    grid = F.affine_grid(torch.eye(2, 3, device=images_BCHW.device)[None] / factor, [1, 1, _SIDE, _SIDE], align_corners=False)
    return F.grid_sample(images_BCHW, grid.expand(len(images_BCHW), -1, -1, -1), padding_mode="reflection", align_corners=False)


def _outside(before_BCHW: Tensor, after_BCHW: Tensor) -> Tensor:
    change = (before_BCHW - after_BCHW).abs().mean(1)
    smooth = F.avg_pool2d(change[:, None], 9, stride=1, padding=4, count_include_pad=False)[:, 0]
    beyond = smooth < _REGION * smooth.amax((1, 2), keepdim=True)
    return (change * beyond).sum((1, 2)) / beyond.sum((1, 2)).clamp(min=1)
