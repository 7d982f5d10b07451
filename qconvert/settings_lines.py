"""A qconfig's resolved settings, as a command says them first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.qconfig_file import with_relative_paths

if TYPE_CHECKING:
    from qconvert.qconfig import QConfig


def settings_lines(config: QConfig) -> list[str]:
    """The resolved settings, a line a section."""
    lines = []
    settings = with_relative_paths(config, Path.cwd())
    if config.data.transform is not None and not config.data.takes_pixels:
        del settings["data"]["preprocess"]
    elif config.data.transform is not None or config.model.source.startswith("timm:"):
        # Others have no effect, or are the model's own, which are said when it is built.
        given = config.data.preprocess.model_fields_set
        settings["data"]["preprocess"] = {
            key: value for key, value in settings["data"]["preprocess"].items() if key in given
        }
    for section, values in settings.items():
        if isinstance(values, dict):
            shown = ", ".join(f"{k}={_short(v)}" for k, v in values.items() if v not in (None, []))
        else:
            shown = _short(values)
        lines.append(f"  {section + ':':14}{shown or 'none'}")
    return lines


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        inner = (f"{k}={_short(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inner) + "}"
    return json.dumps(value)
