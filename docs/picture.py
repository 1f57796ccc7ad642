"""The README's picture, at 128 pixels: of each edit type the first held-out edit in the plain style, which shows best, not chosen by hand.

`python docs/picture.py` after `python docs/embedded.py`, whose held-out edits, scales and SDEdit strength these are.
"""

from pathlib import Path

import torch
from embedded import FEW, LARGE, OUT
from quality import plain_firsts

from ip2p.model.edit import edit_batch, open_editor
from ip2p.model.guidance import EditRequest, edit_options
from ip2p.model.heldout import held_out, seen_in
from ip2p.model.sdedit import sdedit
from ip2p.models import EMBEDDED, load_diffusion, resolve_device
from ip2p.params import load_params
from ip2p.pictures import to_pillow
from ip2p.sheets import sheet
from ip2p.stages import DATASET, TRIPLETS
from ip2p.store import read_json

PICTURE = Path("docs/img/edits.png")
COLUMNS = 2


def main() -> None:
    """Write the picture."""
    params = load_params(Path("params.yaml")).changed("evaluate", **FEW)
    section = params.evaluate
    editor = open_editor(LARGE, params.models)
    seen = seen_in(EMBEDDED / "editor", section)
    held = held_out(params, triplets=TRIPLETS, dataset=DATASET, size=editor.image_size, seen=seen)
    first = sorted(plain_firsts((e.edit_type, e.caption) for e in held.edits).values())
    edits = [held.edits[i] for i in first]
    sources, targets = (torch.cat([of(slice(i, i + 1)) for i in first]) for of in (held.sources, held.targets))
    requests = [EditRequest(e.instruction, section.text_guidance, section.image_guidance, e.seed) for e in edits]
    strength = read_json(OUT / LARGE / "report.json")["baselines"]["sdedit"]["strength"]
    teacher = load_diffusion(LARGE, device=resolve_device(params.models.device), dtype=editor.dtype)
    drawn = sdedit(
        teacher,
        sources,
        [e.edited_caption for e in edits],
        [e.seed for e in edits],
        strength=strength,
        solver=section.solver,
        steps=section.sdedit_steps or section.steps,
        guidance=section.sdedit_guidance,
    )
    columns = (sources, edit_batch(editor, sources, requests, edit_options(section)), drawn, targets)
    panels = [(e.instruction, [to_pillow(x[n].cpu().float()) for x in columns]) for n, e in enumerate(edits)]
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    sheet(rows, heads=("source", "edit", "SDEdit", "truth")).save(PICTURE)


if __name__ == "__main__":
    main()
