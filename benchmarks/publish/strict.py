"""Defines the base of all parts of a record."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen model without unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
