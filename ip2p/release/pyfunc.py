"""The editor as an MLflow model from code: columns `image` (encoded picture) and `instruction` in, PNG bytes out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import set_model

from ip2p.model.edit import edit_pictures, load_editor
from ip2p.model.guidance import EditOptions, EditRequest
from ip2p.models import resolve_device
from ip2p.pictures import open_picture


class EditorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """Loads the diffusers folder kept as the artifact `editor`."""

    def load_context(self, context: Any) -> None:
        """Load the editor onto the best device here."""
        self.editor = load_editor(Path(context.artifacts["editor"]).resolve(), device=resolve_device("auto"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Edit each row's picture; parameters hold for all rows."""
        given = params or {}
        results = []
        for number, row in enumerate(model_input.itertuples()):
            picture = open_picture(
                bytes(row.image),  # type: ignore[arg-type]
                where=f"row {number}: image",
            )
            request = EditRequest(str(row.instruction), given["text_guidance"], given["image_guidance"], given["seed"])
            buffer = io.BytesIO()
            interval = (given["guidance_from"], given["guidance_until"])
            options = EditOptions(given["steps"], given["solver"], interval, given["guidance_every"])
            edited, *_ = edit_pictures(self.editor, [picture], [request], options)
            edited.save(buffer, "PNG")
            results.append(buffer.getvalue())
        return pd.DataFrame({"image": results})


set_model(EditorModel())
