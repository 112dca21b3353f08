"""The base of every table of a recipe."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable, typed, bounded values; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")
