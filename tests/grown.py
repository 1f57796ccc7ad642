"""A teacher's UNet as an editor's begins."""

from ip2p.model.unet import new_editor_unet


def grow_unet(teacher):
    """An editor's UNet that nothing has trained yet."""
    return new_editor_unet(teacher, int(teacher.config.in_channels))
