"""The editor as an MLflow model from code: columns `image` (encoded picture) and `instruction` in, PNG bytes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import set_model

from ip2p.model.edit import edit_pictures, load_editor
from ip2p.model.guidance import EditRequest
from ip2p.models import resolve_device
from ip2p.pictures import encoded, open_picture
from ip2p.release.version import options_of

_AT_ONCE = 32
"""Rows whose pictures are decoded at once; those of one size are edited together."""


class EditorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """Loads the diffusers folder kept as the artifact `editor`."""

    def load_context(self, context: Any) -> None:
        """Load the editor onto the best device here."""
        self.editor = load_editor(Path(context.artifacts["editor"]).resolve(), device=resolve_device("auto"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Edit each row's picture; parameters hold for all rows."""
        given, edited = params or {}, []
        for first in range(0, len(model_input), _AT_ONCE):
            some = model_input.iloc[first : first + _AT_ONCE]
            pictures = [open_picture(bytes(data), where=f"row {first + i}: image") for i, data in enumerate(some["image"])]
            requests = [EditRequest(str(x), given["text_guidance"], given["image_guidance"], given["seed"]) for x in some["instruction"]]
            edited += [encoded(x) for x in edit_pictures(self.editor, pictures, requests, options_of(given))]
        return pd.DataFrame({"image": edited})


set_model(EditorModel())
