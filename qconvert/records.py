"""The base of everything that is written to a JSON file and read back."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen, and strict about its keys when it is read back."""

    model_config = ConfigDict(extra="forbid", frozen=True)
