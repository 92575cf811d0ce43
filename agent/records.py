"""The commissioning record as a payload: what was measured on the day a node was hung. Touches nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.messages import Sha256, Time


class Check(BaseModel):
    """One line of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str = Field(description="What was tried.", examples=["walk"])
    passed: bool = Field(description="Whether it was well.", examples=[True])
    words: str = Field(description="What came of it, in plain words.", examples=["5 of 5 walks became an event"])
    hint: str = Field("", description="What to do about a failure.")


class Record(BaseModel):
    """`B/commissioning`, retained: what `camera-agent aim` leaves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1] = Field(1, description="Version of the payload.")
    site: str = Field(description="Id of the site.", examples=["ward-12"])
    node: str = Field(description="Id of the node.", examples=["entrance"])
    name: str = Field(description="For people, any script.", examples=["Cửa chính"])
    location: str = Field(description="Where it hangs, for people.", examples=["Tầng 1, sảnh"])
    time: Time = Field(description="When it was measured.")
    clock_synced: bool = Field(description="Whether a time service disciplined the clock then.", examples=[True])
    version: str = Field(description="Version of the agent.", examples=["0.1.0"])
    passed: bool = Field(description="Whether all checks were well.", examples=[True])
    checks: list[Check] = Field(description="The table.")
    camera: str = Field(description="As the camera names itself.", examples=["imx708 /base/soc/i2c0mux"])
    fps: float = Field(description="Frames per second that came.", examples=[15.0])
    age_ms: tuple[float, float] = Field(
        description="From exposure to analysed, milliseconds: median and 95th percentile.", examples=[[38.0, 71.0]]
    )
    light: tuple[float, float, float] = Field(
        description="Mean luma 0..255, and the shares of the picture that are too dark and too bright.",
        examples=[[112.4, 0.02, 0.01]],
    )
    signal_dbm: float | None = Field(description="Wi-Fi, dBm; null on a cable.", examples=[-58.0])
    walks_wanted: int = Field(description="Walks of the walk test.", examples=[5])
    walks_seen: int = Field(description="Of these became an event.", examples=[5])
    picture_sha256: Sha256 = Field(description="Of the view's JPEG, which stays on the node.")
