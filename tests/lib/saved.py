"""Saved models as version 0.1.0 wrote them: nothing in them says what their files were."""

import json
from pathlib import Path
from typing import Any


def unseal(folder: Path, **changes: Any) -> None:
    """Bring a keep.json into format 1, with other entries."""
    file = folder / "keep.json"
    record = json.loads(file.read_text())
    kept = {name: value for name, value in record.items() if name not in ("files", "digest")}
    file.write_text(json.dumps(kept | {"format": 1} | changes))
